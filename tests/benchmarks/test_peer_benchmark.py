"""The variants of the peers benchmark that need no other environment and no Ray, each in its process."""

import pytest

from benchmarks.peers.child import Child


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("sockets", ["sendall"]), ("sockets", ["sendfile"]), ("sockets", ["asyncio"]), ("ours", []), ("over_grpc", [])],
)
def test_a_variant_reads_as_often_as_it_is_told_to(script: str, arguments: list[str]) -> None:
    with Child(script, arguments) as child:
        assert all(0.0 < child.read() < 60.0 for _ in range(2))


def test_a_variant_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="has ended with status 1"):
        Child("sockets", ["by carrier pigeon", "and more"], python="/bin/false")
