"""Blocks of a workflow that waits for a tool are back on the GPU before it goes on, however long the tool takes."""

import random

import pytest

from pbkv_cluster.cache.policies.pbkv import Pbkv
from pbkv_cluster.core.workflow.tool_call import ToolCall
from tests.cache.test_prefetch import Bus, Rig


@pytest.mark.parametrize("tool_s", [60.0, 600.0])
@pytest.mark.parametrize("cycle_s", [8.0, 30.0])
def test_a_workflow_has_its_blocks_back_before_its_tool_ends(tool_s: float, cycle_s: float) -> None:
    rig = Rig("conservative", "pbkv", guard=False, bus=Bus())
    for number in range(6):
        for name in ("waits", "b", "c", "d"):
            rig.run(name, number)
            rig.clock.advance(cycle_s / 4 - 1.0)
    policy, call = rig.cache.tiers.gpu.policy, ToolCall("tests", expected_s=tool_s)
    assert isinstance(policy, Pbkv)
    spread = random.Random(1)
    for _ in range(60):
        policy.outlook.timing.tools.add(call, tool_s * spread.lognormvariate(0, 0.1))
    began = rig.clock.now()
    rig.cache.tool_call("waits", call, started=True)
    for name in "efgh":
        rig.run(name)
    for name in "bcdefgh":
        rig.cache.retire(name)
    assert rig.on_gpu("waits") < 3
    while rig.on_gpu("waits") < 3:
        waited = rig.clock.now() - began
        assert waited < tool_s, "the workflow goes on, and has to wait for its blocks"
        rig.clock.advance(1.0)
        rig.cache.prefetcher.wake()
        rig.cache.prefetcher.run(1.0, [])
    assert waited > 0.5 * tool_s, "they have taken the room of others for long"
