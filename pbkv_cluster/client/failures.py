"""Errors of a client's calls."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from pbkv_cluster.rpc.errors import from_rpc


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raises a failed call as the error of `core.errors` that the gateway meant."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error) from error
