"""What the predictor is told of a step."""

from pbkv_cluster.core import tokens
from pbkv_cluster.core.text.words import hashed_words
from pbkv_cluster.core.workflow.events import EventKind
from pbkv_cluster.gateway.step.step import Step, StepSpec
from pbkv_cluster.gateway.workflow.events import EventReporter


def report_started(events: EventReporter, spec: StepSpec, beginning: str) -> None:
    """`beginning`: of the task, where it is the workflow's first step."""
    events.report(
        spec.workflow,
        EventKind.STEP_STARTED,
        agent=spec.agent,
        call_site=spec.call_site,
        step=spec.number,
        parent_step=spec.parent_step,
        prompt_tokens=spec.prompt.tokens,
        pieces=spec.prompt.pieces,
        words=hashed_words(beginning),
    )


def report_finished(events: EventReporter, step: Step, spec: StepSpec) -> None:
    events.report(
        spec.workflow,
        EventKind.STEP_FINISHED,
        agent=spec.agent,
        call_site=spec.call_site,
        step=spec.number,
        parent_step=spec.parent_step,
        prompt_tokens=spec.prompt.tokens,
        output_tokens=tokens.count(bytes(step.sent)),
        words=hashed_words(step.beginning),
        hidden=step.hidden,
    )
