"""Background tasks: failures are reported, lost cancels are repeated."""

import asyncio

import pytest

from pbkv_cluster.core.background import Background


async def test_a_background_task_that_fails_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    background = Background()
    background.start(fail(), "the broken one")
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(background.failure(), 20)
    assert "the broken one" in caplog.text, "it is logged"
    with pytest.raises(ExceptionGroup, match="background tasks failed"):
        await background.stop()


async def test_a_background_task_that_loses_a_cancel_still_stops() -> None:
    lost = 0

    async def run() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    background = Background()
    background.start(run(), "stubborn")
    await asyncio.wait_for(background.stop(), 20)
    assert lost == 2
