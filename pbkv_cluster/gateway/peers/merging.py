"""Puts together what several gateways tell of themselves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pbkv_cluster.rpc.v1 import inspection_pb2, types_pb2, workflow_pb2
from pbkv_cluster.store.cluster_index import GatewayEntry

_TOTALS = ("steps", "prompt_tokens", "available_tokens", "computed_tokens", "generated_tokens")
_AGENT_SUMS = ("steps", "prompt_tokens", "available_tokens", "generated_tokens")

Status = workflow_pb2.GetClusterStatusResponse


def merge_status(own: Status, me: str, gateways: Sequence[GatewayEntry], others: Mapping[str, Status]) -> None:
    """Adds what other gateways have counted to a gateway's own status, and lists all of them.

    Args:
        own: changed in place.
        me: incarnation of the gateway that answers.
        gateways: in the directory.
        others: answers by name.
    """
    for entry in gateways:
        status = own if entry.incarnation == me else others.get(entry.name)
        own.gateways.add(
            name=entry.name,
            node_id=entry.node_id,
            address=entry.address,
            http_address=entry.http_address,
            reachable=status is not None,
            open_workflows=0 if status is None else status.open_workflows,
            running_steps=0 if status is None else status.running_steps,
        )
    for status in others.values():
        own.open_workflows += status.open_workflows
        own.running_steps += status.running_steps
        _add(own.totals, status.totals, _TOTALS)
        for reason, count in status.decisions.items():
            own.decisions[reason] += count


def merge_workflows(
    own: inspection_pb2.ListWorkflowsResponse, others: Iterable[inspection_pb2.ListWorkflowsResponse], limit: int
) -> inspection_pb2.ListWorkflowsResponse:
    """The workflows that were heard of last, at most `limit`."""
    answers = [own, *others]
    found = sorted((each for answer in answers for each in answer.workflows), key=lambda each: each.idle_s)
    return inspection_pb2.ListWorkflowsResponse(workflows=found[:limit], open=sum(answer.open for answer in answers))


def merge_agents(
    own: inspection_pb2.ListAgentsResponse, others: Iterable[inspection_pb2.ListAgentsResponse], limit: int
) -> inspection_pb2.ListAgentsResponse:
    """Sums over all gateways by call site, at most `limit`; where prompts part is what the gateway tells that has seen most."""
    sites: dict[tuple[str, str, str], inspection_pb2.AgentSummary] = {}
    for each in (agent for answer in (own, *others) for agent in answer.agents):
        key = each.workload, each.agent_id, each.call_site
        if (known := sites.get(key)) is None:
            sites[key] = each
            continue
        _add(known, each, _AGENT_SUMS)
        if each.parting_pairs > known.parting_pairs:
            known.parting_pairs, known.parting_tokens = each.parting_pairs, each.parting_tokens

    def computed_again(agent: inspection_pb2.AgentSummary) -> tuple[int, int]:
        return agent.available_tokens - sum(each.tokens for each in agent.delivered), agent.prompt_tokens

    return inspection_pb2.ListAgentsResponse(agents=sorted(sites.values(), key=computed_again, reverse=True)[:limit])


def _add(into: Any, more: Any, fields: Iterable[str]) -> None:
    """Adds counts, and tokens by tier, of one message to those of another."""
    for field in fields:
        setattr(into, field, getattr(into, field) + getattr(more, field))
    for field in ("captured", "delivered"):
        _add_tiers(getattr(into, field), getattr(more, field))


def _add_tiers(into: Any, more: Iterable[types_pb2.TierTokens]) -> None:
    known = {each.tier: each for each in into}
    for each in more:
        if each.tier in known:
            known[each.tier].tokens += each.tokens
        else:
            into.add().CopyFrom(each)
