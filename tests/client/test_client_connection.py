"""Clients without a gateway at the other end."""

import pytest

from pbkv_cluster.client import AsyncClient, Client
from pbkv_cluster.core.errors import Unavailable

NOBODY = "127.0.0.1:1"


async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    async with AsyncClient(NOBODY) as client:
        with pytest.raises(Unavailable):
            await client.start_workflow()
        with pytest.raises(Unavailable):
            await client.status()


def test_a_gateway_that_is_not_there_is_unavailable_without_asyncio() -> None:
    with Client(NOBODY) as client:
        with pytest.raises(Unavailable):
            client.start_workflow()
        with pytest.raises(Unavailable):
            client.status()
