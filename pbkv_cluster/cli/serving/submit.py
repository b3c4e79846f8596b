"""`pbkv submit`: runs one step of a workflow and streams its text."""

from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pbkv_cluster.cli.interrupts import on_event_loop
from pbkv_cluster.cli.options import DEFAULT_ENDPOINT, Endpoint, connected
from pbkv_cluster.cli.prompt import Chat, Messages, Prompt, PromptText, read_prompt
from pbkv_cluster.cli.targets import JsonTarget, check_json_target, write_json
from pbkv_cluster.cli.terminal.output import share

if TYPE_CHECKING:
    from pbkv_cluster.client import Finished, StepOptions
    from pbkv_cluster.core.usage import Usage


@connected
def submit(
    prompt: PromptText = None,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    agent: Annotated[str, typer.Option(help="The agent that calls the model.")] = "cli",
    workflow: Annotated[
        str,
        typer.Option(help="Workflow to add the step to, which stays open; by default a new one, which ends with the step."),
    ] = "",
    messages: Messages = None,
    chat: Chat = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", show_default=False)] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Share of probability to sample from, in (0, 1].", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.", show_default=False)] = None,
    usage: Annotated[bool, typer.Option("--usage", help="Print the step's tokens, hits and times on standard error.")] = False,
    json_target: JsonTarget = None,
) -> None:
    """Run one step and stream its text."""
    check_json_target(json_target)
    options: StepOptions = {}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    if temperature is not None:
        options["temperature"] = temperature
    if top_p is not None:
        options["top_p"] = top_p
    if seed is not None:
        options["seed"] = seed
    if stop:
        options["stop"] = stop
    content = read_prompt(prompt, messages, chat)
    finished, text = on_event_loop(_run(endpoint, workflow, agent, content, options, err=json_target == "-"))
    ending = describe_ending(finished, bool(text), isinstance(content, str))
    if ending:
        typer.echo(f"pbkv: {ending}", err=True)
    if usage:
        typer.echo(describe(finished.usage), err=True)
    write_json({"text": text, "finish_reason": finished.reason, "usage": asdict(finished.usage)}, json_target)


async def _run(
    endpoint: str, workflow_id: str, agent: str, prompt: Prompt, options: "StepOptions", err: bool
) -> "tuple[Finished, str]":
    """How the step ended, and its text, which is printed as it comes; on standard error if `err` is set."""
    from pbkv_cluster.client import AsyncClient, Finished, Tokens
    from pbkv_cluster.core.errors import Unavailable

    finished: Finished | None = None
    text = ""
    # Not direct: one step is over before a receiver is connected.
    async with AsyncClient(endpoint, direct=False) as client, AsyncExitStack() as stack:
        workflow = await client.start_workflow(workflow_id)
        if not workflow_id:
            await stack.enter_async_context(workflow)
        async for event in workflow.stream(agent=agent, prompt=prompt, **options):
            match event:
                case Tokens():
                    typer.echo(event.text, nl=False, err=err)
                    text += event.text
                case Finished():
                    finished = event
        if text:
            typer.echo(err=err)
    if finished is None:
        raise Unavailable("the stream ended before the step did")
    return finished, text


def describe_ending(finished: "Finished", printed: bool, plain: bool) -> str:
    """Why a step ended, where that is not what everybody expects: after some text, by the model's own end; else "".

    Args:
        finished: the end of the step.
        printed: whether there was any text.
        plain: the prompt was a text without the model's chat template.
    """
    from pbkv_cluster.client import FinishReason

    match finished.reason:
        case FinishReason.LENGTH:
            cause = "the limit of tokens was reached; --max-tokens sets it"
        case FinishReason.CANCELLED:
            cause = "the step was cancelled"
        case FinishReason.STOP if printed:
            return ""
        case FinishReason.STOP:
            cause = "the model wrote its end-of-sequence token, or a --stop string"
    if printed:
        return f"the answer ended because {cause}"
    hint = "; an instruct model expects its chat template: --chat" if plain else ""
    return f"the answer is empty: {cause}, after {finished.usage.generated_tokens} tokens{hint}"


def describe(usage: "Usage") -> str:
    """Tokens, hits and times of a step, in a few lines."""
    captured, delivered = sum(usage.captured.values()), sum(usage.delivered.values())
    tiers = "".join(f", {tier.value} {tokens:,}" for tier, tokens in usage.delivered.items() if tokens)
    return "\n".join(
        (
            f"prompt     {usage.prompt_tokens:,} tokens, {usage.computed_tokens:,} computed",
            f"available  {share(usage.available_tokens, usage.prompt_tokens)}",
            f"captured   {share(captured, usage.prompt_tokens)}",
            f"delivered  {share(delivered, usage.prompt_tokens)}{tiers}",
            f"generated  {usage.generated_tokens:,} tokens on {usage.worker_id}",
            f"time       {usage.ttft_s:.3f} s to the first token, {usage.total_s:.3f} s in all",
            f"           queue {usage.queue_s:.3f} s, load {usage.load_s:.3f} s, prefill {usage.prefill_s:.3f} s, "
            f"decode {usage.decode_s:.3f} s",
        )
    )
