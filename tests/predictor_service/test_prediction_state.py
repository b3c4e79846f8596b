"""What a track keeps, against the whole history of its workflow."""

import random

import pytest

from pbkv_cluster.core.events import EventKind, WorkflowEvent
from pbkv_cluster.predictor_service.workflow.prediction_state import PredictionState


@pytest.mark.parametrize("seed", range(5))
def test_a_situation_tells_what_became_of_the_latest_agents_step_before(seed: int) -> None:
    chance, track = random.Random(seed), PredictionState(horizon=3)
    history: list[tuple[str, int, int]] = []  # agents, and the tokens of their prompts and outputs
    for number in range(40):
        agent, prompt, output = chance.choice("abc"), chance.randrange(1, 9000), chance.randrange(1, 900)
        track.number, track.steps = number, number + 1
        track.began(agent, "", (), prompt)
        former = [step for step in history if step[0] == agent]
        found = track.situation(finished=False)
        assert found.count == len(former) + 1
        assert (found.own_prompt_tokens, found.own_output_tokens) == (former[-1][1:] if former else (0, 0))
        if chance.random() < 0.2:  # its end is lost
            output = 0
        else:
            if chance.random() < 0.2:  # a branch beside it ends first, and is none of its output
                track.finished(_end(number - 1, 77))
            track.finished(_end(number, output))
        assert track.situation(finished=True).own_prompt_tokens == found.own_prompt_tokens
        history.append((agent, prompt, output))


def _end(step: int, tokens: int) -> WorkflowEvent:
    return WorkflowEvent(EventKind.STEP_FINISHED, "w", 0, 0.0, agent="a", step=step, output_tokens=tokens)
