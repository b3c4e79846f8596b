"""What an engine has produced for one request."""

from dataclasses import dataclass

from pbkv_cluster.core.load_speeds import LoadSpeeds
from pbkv_cluster.core.usage import Usage
from pbkv_cluster.core.workflow.logprobs import TokenLogprobs
from pbkv_cluster.core.workflow.step_events import FinishReason


@dataclass(frozen=True, slots=True)
class Output:
    """What an engine has produced for one request."""

    request_id: str
    tokens: tuple[int, ...]
    text: str
    finished: FinishReason | None = None
    usage: Usage | None = None  # with `finished`
    hidden: bytes = b""  # with `finished`; see `model/hidden_state.py`
    logprobs: tuple[TokenLogprobs, ...] = ()  # of each token, if they were asked for
    speeds: LoadSpeeds | None = None  # with `finished`: of the engine, then; None: not measured
