"""How many values a JSON text holds, told before it is parsed: each costs more memory than the bytes that write it."""

import re
from collections.abc import Iterator

from pbkv_cluster.gateway.http.wire.problems import BodyTooLarge

_MAX_FIELDS = 200_000  # of all objects together; each that is unknown costs some hundred bytes
_MAX_CONTAINERS = 200_000  # lists and objects; each costs some hundred bytes while it is parsed, even if it is empty
_MAX_COMMAS = 2_000_000  # each item of a list costs up to 70 bytes; a prompt of token ids may have very many

# What says nothing of the number of values, with a sign after it that does, if one is near. Every match ends within 130 KiB:
# no other thread runs meanwhile. A string that is longer than a few KiB is left to _IN_STRING.
_SIGN = re.compile(rb'(?:"(?:[^"\\]{1,64}+|\\.){0,64}+"|[^"\[{:,]{1,4096}+){0,32}+([\[{:,"]?)', re.DOTALL)
_IN_STRING = re.compile(rb'(?:[^"\\]{1,64}+|\\.){0,1024}+', re.DOTALL)


def check_values(body: bytes) -> None:
    """Raises:
    BodyTooLarge: it holds too many values; says of which kind.
    """
    fields, containers, commas = body.count(b":"), body.count(b"[") + body.count(b"{"), body.count(b",")
    if fields <= _MAX_FIELDS and containers <= _MAX_CONTAINERS and commas <= _MAX_COMMAS:
        return  # also if none of them is in a string
    fields = containers = commas = 0
    for found in _signs(body):
        match found[1]:
            case b",":
                commas += 1
                if commas > _MAX_COMMAS:
                    raise BodyTooLarge(f"the body has more than {_MAX_COMMAS} items")
            case b":":
                fields += 1
                if fields > _MAX_FIELDS:
                    raise BodyTooLarge(f"the body has more than {_MAX_FIELDS} fields")
            case b"[" | b"{":
                containers += 1
                if containers > _MAX_CONTAINERS:
                    raise BodyTooLarge(f"the body has more than {_MAX_CONTAINERS} lists and objects")


def _signs(body: bytes) -> Iterator[re.Match[bytes]]:
    position = 0
    while position < len(body):
        for found in _SIGN.finditer(body, position):
            yield found
            position = found.end()
            if found[1] == b'"':
                position = _end_of_string(body, position)
                break


def _end_of_string(body: bytes, position: int) -> int:
    """Where what follows a string begins, of which `position` is within."""
    while (found := _IN_STRING.match(body, position)) and found[0]:
        position = found.end()
    return position + 1
