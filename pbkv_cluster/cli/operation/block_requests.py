"""`pbkv cache prefetch`, `lease` and `release`: what a client can ask of the caches, from the shell."""

from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.prompt import Chat, Messages, PromptText, read_prompt
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import result_console
from pbkv_cluster.core.errors import InvalidArgument

if TYPE_CHECKING:
    from pbkv_cluster.client import Client

Tenant = Annotated[str, typer.Option(metavar="NAME", help="Whose blocks the prompt shares.")]


@connected
def prefetch(
    prompt: PromptText = None,
    workflow: Annotated[
        str,
        typer.Option(metavar="ID", help="Instead of a prompt: what this open workflow has used, as far as it is worth most."),
    ] = "",
    agent: Annotated[str, typer.Option(metavar="NAME", help="Of the workflow, only what this agent has used.")] = "",
    messages: Messages = None,
    chat: Chat = False,
    tenant: Tenant = "",
    within: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="A step will use the prompt within so long: lease its blocks, too.")
    ] = 0.0,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """Load to a GPU what is cached of a prompt, or of a workflow, before a step asks for it.

    Takes free space and that of ended workflows only, so it never costs an active workflow its blocks. A prompt is loaded by
    the worker that its step would go to now.
    """
    check_json_target(json_target)
    if workflow and (prompt is not None or messages is not None or chat or tenant or within):
        raise InvalidArgument("--workflow", "cannot be combined with a prompt or its options")
    content = None if workflow else read_prompt(prompt, messages, chat)
    with _client(endpoint) as client:
        done = client.prefetch(content, workflow_id=workflow, agent=agent, tenant=tenant, within_s=within)
    tiers = {str(tier): tokens for tier, tokens in done.tiers.items()}
    cached = ", ".join(f"{tier} {tokens:,}" for tier, tokens in tiers.items()) or "nothing"
    console = result_console(json_target)
    staged = f", {done.staged_tokens:,} staged in host memory" if done.staged_tokens else ""
    console.print(f"{done.loaded_tokens:,} tokens loaded{staged}; {done.resident_tokens:,} are on a GPU now")
    console.print(
        f"cached of {done.tokens:,}: {cached}; {done.leased_tokens:,} leased{f', as {done.lease_id}' if done.lease_id else ''}"
    )
    value = {
        "loaded_tokens": done.loaded_tokens,
        "resident_tokens": done.resident_tokens,
        "tokens": done.tokens,
        "tiers": tiers,
        "leased_tokens": done.leased_tokens,
        "lease_id": done.lease_id,
        "staged_tokens": done.staged_tokens,
    }
    write_json(value, json_target)


@connected
def lease(
    prompt: PromptText = None,
    seconds: Annotated[float, typer.Option(help="Until the lease expires, at most `cache.lease_max_s`.")] = 60.0,
    lease_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="Takes the place of the tenant's lease of this id; by default drawn.")
    ] = "",
    messages: Messages = None,
    chat: Chat = False,
    tenant: Tenant = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """Ask that what is cached of a prompt stays cached for a while, as far as the tenant's share allows.

    Leased blocks are the last to be evicted; where steps need their room, they are.
    """
    check_json_target(json_target)
    content = read_prompt(prompt, messages, chat)
    with _client(endpoint) as client:
        done = client.lease_blocks(content, lease_s=seconds, tenant=tenant, lease_id=lease_id)
    result_console(json_target).print(
        f"{done.leased_tokens:,} of {done.cached_tokens:,} cached tokens leased for {seconds:g} s, as {done.id}"
    )
    write_json({"lease_id": done.id, "cached_tokens": done.cached_tokens, "leased_tokens": done.leased_tokens}, json_target)


@connected
def release(
    lease_id: Annotated[str, typer.Argument(metavar="ID", help="Of the lease.")],
    tenant: Tenant = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    json_target: JsonTarget = None,
) -> None:
    """End a block lease before it expires."""
    check_json_target(json_target)
    with _client(endpoint) as client:
        released = client.release_blocks(lease_id, tenant=tenant)
    result_console(json_target).print(f"{released:,} tokens released")
    write_json({"released_tokens": released}, json_target)


def _client(endpoint: str) -> "Client":
    from pbkv_cluster.client import Client

    return Client(endpoint)
