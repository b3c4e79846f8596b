"""A body of so many values that they would take far more memory than its bytes is refused before it is parsed."""

import sys
from types import FrameType

import pytest

from pbkv_cluster.gateway.http.wire.json_bounds import check_values
from pbkv_cluster.gateway.http.wire.problems import BodyTooLarge
from tests.gateway.http.http_rig import http_running
from tests.gateway.http.test_http_limits import BODY, answered, request
from tests.gateway.peers import ScriptedWorker


@pytest.mark.parametrize("between", [b":", b" :", b"\t\n :"])
async def test_a_body_of_very_many_fields_is_refused_before_it_is_read(between: bytes) -> None:
    fields = b",".join(b'"%d"%s1' % (number, between) for number in range(200_001))
    async with http_running(ScriptedWorker("w0")) as http:
        status, answer = await answered(http, request(b"{%s}" % fields))
    assert status == 413, answer
    assert "200000 fields" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("item", "count", "kind"),
    [(b"[]", 200_001, "200000 lists and objects"), (b'{},""', 200_001, "200000 lists"), (b"0", 2_000_002, "2000000 items")],
)
async def test_so_is_one_of_very_many_values(item: bytes, count: int, kind: str) -> None:
    """A body of 16 MiB would become a gigabyte."""
    body = BODY[:-1] + b', "user": [' + b",".join([item] * count) + b"]}"
    async with http_running(ScriptedWorker("w0")) as http:
        status, answer = await answered(http, request(body))
    assert status == 413, answer
    assert kind in answer["error"]["message"]


@pytest.mark.parametrize("text", [rb"{\"a\": [1], " * 250_000, b"[" * 250_000, rb"\\\"," * 2_100_000])
async def test_what_looks_like_values_in_a_text_is_none(text: bytes) -> None:
    async with http_running(ScriptedWorker("w0")) as http:
        status, answer = await answered(http, request(BODY[:-1] + b', "user": "' + text + b'"}'))
    assert status == 200, answer


@pytest.mark.parametrize("text", [b"a", rb"\"", b'""'])
def test_a_text_without_an_end_is_read_once(text: bytes) -> None:
    """If its end were looked for at each of its bytes, that would take hours."""
    check_values(b"0," * 1_999_000 + b'"' + b"," * 2_000 + text * (1 << 20))


@pytest.mark.parametrize("text", [b"a", rb"\"", b" "])
def test_a_long_text_is_read_in_parts_between_which_other_threads_run(text: bytes) -> None:
    body = b'{"a": "' + text * (4 << 20) + b'", "b": "' + b"," * 2_000_001 + b'"}'
    calls = 0

    def count(frame: FrameType, event: str, called: object) -> None:
        nonlocal calls
        calls += event == "c_call" and getattr(called, "__name__", "") == "match"

    sys.setprofile(count)
    try:
        check_values(body)
    finally:
        sys.setprofile(None)
    assert calls > len(body) // (128 << 10)


@pytest.mark.parametrize("length", [0, 64, 65, 4097, 70_000, 140_000])
@pytest.mark.parametrize("text", [b"a", rb"\"", rb"a\\"])
def test_values_are_counted_right_whatever_the_length_of_a_text_before_them(text: bytes, length: int) -> None:
    start = b'{"a": "' + text * length + b'"' + b" " * length + b', "b": ["[", '
    check_values(start + b"[" * 199_998 + b"]" * 199_998 + b"]}")
    with pytest.raises(BodyTooLarge):
        check_values(start + b"[" * 199_999 + b"]" * 199_999 + b"]}")
