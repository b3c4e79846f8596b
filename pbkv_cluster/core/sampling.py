"""Sampling parameters: how the next tokens of a step are chosen."""

import secrets
from dataclasses import dataclass, replace

from pbkv_cluster.core import checks
from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.workflow.logprobs import MAX_TOP

MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 1024  # of one


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Complete sampling parameters. A token depends on the logits, the seed and its position, not on the rest of its batch."""

    max_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    forced_output: bytes | None = None  # packed ids that are taken instead of sampling
    top_logprobs: int | None = None  # likeliest tokens whose log-probabilities are told, with the chosen one's; None: none is

    def __post_init__(self) -> None:
        """Raises:
        InvalidArgument: a value is out of its range; the field is named as on the wire.
        """
        if not 1 <= self.max_tokens < 2**31:
            raise InvalidArgument("sampling.max_tokens", f"must be at least 1 and fit in 31 bits, got {self.max_tokens}")
        if not 0.0 <= self.temperature <= 100.0:
            raise InvalidArgument("sampling.temperature", f"must be between 0 and 100, got {self.temperature}")
        checks.share("sampling.top_p", self.top_p)
        if not 0 <= self.seed < 2**64:
            raise InvalidArgument("sampling.seed", f"must fit in 64 bits without a sign, got {self.seed}")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidArgument("sampling.stop", f"at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}")
        if any(not text for text in self.stop):
            raise InvalidArgument("sampling.stop", "a stop string must not be empty")
        for text in self.stop:
            checks.text_bytes("sampling.stop", text, MAX_STOP_BYTES)
        if self.forced_output is not None and (not self.forced_output or len(self.forced_output) % 4):
            raise InvalidArgument("sampling.forced_output", "must hold at least one packed int32 token id")
        if self.top_logprobs is not None:
            checks.in_range("sampling.top_logprobs", self.top_logprobs, 0, MAX_TOP)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Sampling parameters as a client gives them. None: left to the server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    forced_output: bytes | None = None
    top_logprobs: int | None = None

    def reseeded(self, number: int) -> "SamplingOptions":
        """The same for another answer to the same prompt: a given seed counts on from there."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % 2**64)

    def complete(self) -> SamplingParams:
        """Fills in the defaults of `SamplingParams`; a seed that is left out is drawn.

        Raises:
            InvalidArgument: a value is out of its range.
        """
        defaults = SamplingParams()
        return SamplingParams(
            max_tokens=defaults.max_tokens if self.max_tokens is None else self.max_tokens,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            seed=secrets.randbits(64) if self.seed is None else self.seed,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
            forced_output=self.forced_output,
            top_logprobs=self.top_logprobs,
        )
