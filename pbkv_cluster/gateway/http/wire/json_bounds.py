"""How many values a JSON text holds, told before it is parsed: each costs more memory than the bytes that write it."""

import re

from pbkv_cluster.gateway.http.wire.problems import BodyTooLarge

_MAX_FIELDS = 200_000  # of all objects together; each that is unknown costs some hundred bytes
_MAX_CONTAINERS = 200_000  # lists and objects; each costs some hundred bytes while it is parsed, even if it is empty
_MAX_COMMAS = 2_000_000  # each item of a list costs up to 70 bytes; a prompt of token ids may have very many

# What says nothing of the number of values, with a sign after it that does, or the end. Possessive, and never without a match,
# so that it reads each byte once, and a string without an end twice: its quote is a sign.
_SIGN = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"|[^"\[{:,]++)*+([\[{:,"]|\Z)', re.DOTALL)


def check_values(body: bytes) -> None:
    """Raises:
    BodyTooLarge: it holds too many values; says of which kind.
    """
    fields, containers, commas = body.count(b":"), body.count(b"[") + body.count(b"{"), body.count(b",")
    if fields <= _MAX_FIELDS and containers <= _MAX_CONTAINERS and commas <= _MAX_COMMAS:
        return  # also if none of them is in a string
    fields = containers = commas = 0
    for found in _SIGN.finditer(body):
        match found[1]:
            case b",":
                commas += 1
                if commas > _MAX_COMMAS:
                    raise BodyTooLarge(f"the body has more than {_MAX_COMMAS} items")
            case b":":
                fields += 1
                if fields > _MAX_FIELDS:
                    raise BodyTooLarge(f"the body has more than {_MAX_FIELDS} fields")
            case b'"':
                return  # the rest is no JSON
            case b"[" | b"{":
                containers += 1
                if containers > _MAX_CONTAINERS:
                    raise BodyTooLarge(f"the body has more than {_MAX_CONTAINERS} lists and objects")
