"""The file of API keys: a list in YAML, each entry a key, or its SHA-256, and whose it is.

- key: 3f0c…            # at least 20 characters, drawn at random
  tenant: research
- sha256: 9b74c9897bac770ffc029102a200c5de…
  operator: true
"""

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import ConfigError, InvalidArgument
from pbkv_cluster.core.security.caller import OPERATOR, Caller

MAX_FILE_BYTES = 16 << 20
MIN_KEY_CHARACTERS = 20  # shorter ones can be guessed
_FIELDS = {"key", "sha256", "tenant", "operator"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FIELD = "security.credentials"

Callers = dict[bytes, Caller]
"""Who calls, by the SHA-256 of the API key."""


def digest(api_key: str) -> bytes:
    """What stands for an API key, so that the key itself need not be kept."""
    return sha256(api_key.encode()).digest()


def read_key_file(path: Path) -> Callers:
    """Raises:
    ConfigError: the file cannot be read, or an entry is wrong; names the entry by its number, and never a key.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{_FIELD}: cannot read {path}: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{_FIELD}: {path} has more than {MAX_FILE_BYTES:,} bytes")
    try:
        entries = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)  # the message itself quotes the line, which may hold a key
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise ConfigError(f"{_FIELD}: {path} is not YAML{where}") from None
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{_FIELD}: {path} must hold a list of API keys")
    callers: Callers = {}
    for number, entry in enumerate(entries, start=1):
        where = f"{_FIELD}: {path}, entry {number}"
        found = _digest(entry, where)
        if found in callers:
            raise ConfigError(f"{where}: the key is given twice")
        callers[found] = _caller(entry, where)
    return callers


def _digest(entry: Any, where: str) -> bytes:
    if not isinstance(entry, dict) or not all(isinstance(name, str) for name in entry):
        raise ConfigError(f"{where}: must be a mapping with key or sha256, and tenant or operator")
    if unknown := sorted(set(entry) - _FIELDS):
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}")
    if ("key" in entry) is ("sha256" in entry):
        raise ConfigError(f"{where}: give either key or sha256")
    if "key" in entry:
        key = entry["key"]
        if not isinstance(key, str) or len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"{where}: key must be a text of at least {MIN_KEY_CHARACTERS} printable characters without spaces"
            )
        return digest(key)
    hexadecimal = entry["sha256"]
    if not isinstance(hexadecimal, str) or not _DIGEST.fullmatch(hexadecimal.lower()):
        raise ConfigError(f"{where}: sha256 must have 64 hexadecimal digits, in quotes")
    return bytes.fromhex(hexadecimal)


def _caller(entry: dict[str, Any], where: str) -> Caller:
    tenant, operator = entry.get("tenant", ""), entry.get("operator", False)
    if not isinstance(operator, bool):
        raise ConfigError(f"{where}: operator must be true or false")
    if not isinstance(tenant, str):
        raise ConfigError(f"{where}: tenant must be a text")
    try:
        checks.name("tenant", tenant)
    except InvalidArgument as error:
        raise ConfigError(f"{where}: {error}") from None
    if bool(tenant) is operator:
        raise ConfigError(f"{where}: give either the name of a tenant, or operator: true")
    return OPERATOR if operator else Caller(tenant)
