"""Ids of prompt segments and replies: keyed hashes. Without the key nobody can tell whether an id is that of a known text."""

import hashlib
import secrets
from collections.abc import Callable

SECRET_BYTES = 32
_ID_BYTES = 10
_AGENT_DIGITS = 10

Ids = Callable[..., str]
"""An id for some parts, each text or bytes: equal for equal parts, different for others."""


def keyed_ids(secret: bytes | None = None) -> Ids:
    """Ids under a secret of at most 64 bytes; None: a new one that nobody knows, so that ids of two recordings never agree."""
    key = secrets.token_bytes(SECRET_BYTES) if secret is None else secret

    def of(*parts: str | bytes) -> str:
        digest = hashlib.blake2b(digest_size=_ID_BYTES, key=key)
        for part in parts:
            data = part.encode(errors="surrogatepass") if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.hexdigest()

    return of


def keyed_agent(name: str, ids: Ids) -> str:
    """A name for an agent that no client has named: the one that it was recognised by tells words of its system prompt."""
    return f"agent-{ids('agent', name)[:_AGENT_DIGITS]}"
