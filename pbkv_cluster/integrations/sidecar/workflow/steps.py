"""A request as a step of a workflow: its events, the engine that it runs on, and what it has cost."""

import asyncio
import logging
from dataclasses import dataclass, field
from enum import StrEnum

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.logs.fields import bind
from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.core.tokens import BLOCK_TOKENS
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.gateway.decisions import Decisions, Reason
from pbkv_cluster.gateway.http.sessions.sessions import Attribution
from pbkv_cluster.gateway.meter import GatewayMeter
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.infinite_cache import InfiniteCache
from pbkv_cluster.gateway.routing.load import StepLoad
from pbkv_cluster.gateway.routing.speeds import OutputLength
from pbkv_cluster.gateway.workflow.events import EventReporter
from pbkv_cluster.gateway.workflow.open_workflows import OpenWorkflow
from pbkv_cluster.integrations.sidecar.engines.placement import Placed, Placement
from pbkv_cluster.integrations.sidecar.engines.prompts import PromptReader, RoutedPrompt
from pbkv_cluster.integrations.sidecar.reading.answers import Told
from pbkv_cluster.integrations.sidecar.reading.asked import Asked

log = logging.getLogger(__name__)

_ANY_LENGTH = 2048  # tokens of an answer whose request sets no maximum, until some have been measured


class Outcome(StrEnum):
    """How a request has ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"  # its client went away, or its workflow ended
    FAILED = "failed"  # the client got an error


@dataclass(eq=False, slots=True)
class PassingStep:
    """A request on its way."""

    asked: Asked
    attribution: Attribution
    workflow: OpenWorkflow
    prompt: RoutedPrompt
    number: int
    began_at: float
    task: "asyncio.Task[object] | None"  # that serves it
    placed: Placed | None = None
    was_alone: bool = False  # on its engine, when it began there
    first_output_at: float | None = None
    told: Told = field(default_factory=Told)

    def cancel(self) -> None:
        """Cuts the request off."""
        if self.task is not None:
            self.task.cancel()


@dataclass(slots=True)
class Steps:
    """The steps of all requests."""

    placement: Placement
    prompts: PromptReader
    contexts: Contexts
    infinite: InfiniteCache
    events: EventReporter
    meter: GatewayMeter
    decisions: Decisions
    clock: Clock
    output_length: OutputLength = field(default_factory=OutputLength)
    in_flight: int = 0

    def begin(self, asked: Asked, attribution: Attribution, workflow: OpenWorkflow, prompt: RoutedPrompt) -> PassingStep:
        """A request becomes the next step of its workflow."""
        number = workflow.steps
        step = PassingStep(asked, attribution, workflow, prompt, number, self.clock.now(), asyncio.current_task())
        workflow.steps += 1
        workflow.running.add(step)
        self.in_flight += 1
        bind(workflow=workflow.id, step=number, agent=attribution.agent)
        self.events.report(
            workflow,
            EventKind.STEP_STARTED,
            agent=attribution.agent,
            call_site=asked.hints.call_site,
            step=number,
            parent_step=number - 1 if number else None,
            prompt_tokens=prompt.tokens,
            pieces=prompt.pieces,
            words=() if number else hashed_words(asked.task),
        )
        return step

    def place(self, step: PassingStep, placed: Placed) -> None:
        """The step goes to an engine; before, it may have been on another one."""
        self._leave(step)
        engine, prompt = placed.engine, step.prompt
        step.placed, step.was_alone = placed, not len(engine.steps)
        output = self.output_length.expected(step.asked.max_tokens or _ANY_LENGTH)
        engine.steps.add(step, StepLoad.expected(prompt.keys, prompt.tokens, placed.cached_tokens, output))
        step.workflow.last_worker = engine.key
        if not step.workflow.ended:
            self.contexts.note(step.workflow.id, step.attribution.agent, engine.key, prompt.keys)

    def output_began(self, step: PassingStep) -> None:
        """The first of the answer has come."""
        if step.first_output_at is None:
            step.first_output_at = self.clock.now()

    def end(self, step: PassingStep, outcome: Outcome, told: Told) -> None:
        """The request is over: frees what it holds, and reports it."""
        self._leave(step)
        self.in_flight -= 1
        step.told = told
        workflow = step.workflow
        workflow.running.discard(step)
        usage = self._usage(step)
        match outcome:
            case Outcome.FINISHED:
                self._learn(step, usage)
            case Outcome.CANCELLED:
                self.decisions[Reason.STEP_CANCELLED] += 1
            case Outcome.FAILED:
                self.decisions[Reason.STEP_FAILED] += 1
        if not workflow.ended:
            workflow.renewed_at = self.clock.now()
            self.events.report(
                workflow,
                EventKind.STEP_FINISHED,
                agent=step.attribution.agent,
                call_site=step.asked.hints.call_site,
                step=step.number,
                parent_step=step.number - 1 if step.number else None,
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.generated_tokens,
                words=hashed_words(told.text),
            )
        log.info(
            "a step has ended",
            extra={
                "outcome": outcome.value,
                "engine": usage.worker_id,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.delivered.get(Tier.GPU, 0),
                "output_tokens": usage.generated_tokens,
                "seconds": round(usage.total_s, 3),
            },
        )

    def _leave(self, step: PassingStep) -> None:
        if step.placed is not None:
            step.placed.engine.steps.discard(step)

    def _learn(self, step: PassingStep, usage: Usage) -> None:
        assert step.placed is not None, "a step that has finished was placed"
        engine, told = step.placed.engine, step.told
        engine.served += 1
        engine.answered(step.prompt, told.prompt_tokens, told.cached_tokens)
        engine.speed.add(usage)
        if step.was_alone and usage.ttft_s:
            self.placement.prefill.add(usage)
        self.prompts.check(step.prompt, told.prompt_tokens)
        self.output_length.add(usage)
        self.infinite.remember(step.prompt.keys)
        self.meter.step_finished(usage, step.workflow.workload, step.workflow.tenant)

    def _usage(self, step: PassingStep) -> Usage:
        """What the step has cost; where the engine does not say it, as expected."""
        told, prompt, placed = step.told, step.prompt, step.placed
        now = self.clock.now()
        prompt_tokens = prompt.tokens if told.prompt_tokens is None else told.prompt_tokens
        expected = 0 if placed is None else placed.cached_tokens
        cached = min(expected if told.cached_tokens is None else told.cached_tokens, prompt_tokens)
        total_s = now - step.began_at
        ttft_s = 0.0 if step.first_output_at is None else step.first_output_at - step.began_at
        usage = Usage(
            prompt_tokens=prompt_tokens,
            available_tokens=min(self.infinite.match(prompt.keys, len(prompt.keys) * BLOCK_TOKENS), prompt_tokens),
            captured={Tier.GPU: cached},
            delivered={Tier.GPU: cached},
            computed_tokens=prompt_tokens - cached,
            generated_tokens=told.output_tokens or 0,
            prefill_s=ttft_s,
            decode_s=total_s - ttft_s,
            ttft_s=ttft_s,
            total_s=total_s,
            worker_id="" if placed is None else placed.engine.name,
        )
        usage.settle()
        return usage
