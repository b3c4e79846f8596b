"""The progress of a workflow, compared with its whole history."""

import random

import pytest

from pbkv_cluster.core.workflow.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.workflow.progress import Progress


@pytest.mark.parametrize("seed", range(5))
def test_a_situation_has_the_lengths_of_the_latest_agents_previous_step(seed: int) -> None:
    draws, progress = random.Random(seed), Progress()
    history: list[tuple[str, int, int]] = []  # agents, and the tokens of their prompts and outputs
    for number in range(40):
        agent, prompt, output = draws.choice("abc"), draws.randrange(1, 9000), draws.randrange(1, 900)
        started = WorkflowEvent(EventKind.STEP_STARTED, "w", 0, 0.0, agent=agent, step=number, prompt_tokens=prompt)
        progress.start_step(started)
        progress.describe_step(agent, started, ())
        earlier = [step for step in history if step[0] == agent]
        found = progress.situation(finished=False)
        assert found.count == len(earlier) + 1
        assert (found.agent_prompt_tokens, found.agent_output_tokens) == (earlier[-1][1:] if earlier else (0, 0))
        if draws.random() < 0.2:  # its end is lost
            output = 0
        else:
            if draws.random() < 0.2:  # a step of a parallel branch finishes first
                progress.finish_step(_finished(number - 1, 77))
            progress.finish_step(_finished(number, output))
        assert progress.situation(finished=True).agent_prompt_tokens == found.agent_prompt_tokens
        history.append((agent, prompt, output))


def _finished(step: int, tokens: int) -> WorkflowEvent:
    return WorkflowEvent(EventKind.STEP_FINISHED, "w", 0, 0.0, agent="a", step=step, output_tokens=tokens)
