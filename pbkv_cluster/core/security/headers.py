"""The API key in the headers of a call: as OpenAI's clients send it, as Anthropic's do, and as browsers do."""

import base64
import binascii
from collections.abc import Mapping

BROWSER_CHALLENGE = 'Basic realm="pbkv: the password is the API key of an operator", charset="UTF-8"'
CHALLENGE = "Bearer"


def api_key_of(headers: Mapping[str, str]) -> str:
    """The key; empty: there is none. `Authorization: Bearer KEY`, the password of `Authorization: Basic`, or `x-api-key: KEY`.

    Args:
        headers: by name in lower case.
    """
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return headers.get("x-api-key", "").strip()
