"""What came out, in words: whether there is anything to save here, and who saves it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pbkv_cluster.simulator.report.potential import Potential
from pbkv_cluster.simulator.report.sweep import CLAIRVOYANT, LRU, PBKV, Outcome, Size

_NOTHING_SHARED = 0.01  # of the prompt tokens: less is not worth a cache
_ALL_KEPT = 0.01  # of the available tokens, recomputed by LRU: less is nothing to improve
# LRU's seconds over others', from which on users notice: a first token is soon there anyway.
_NOTICEABLE_TTFT, _NOTICEABLE_LATENCY = 1.1, 1.05
_WORSE = 0.95


class Verdict(StrEnum):
    """The answer in short."""

    UNKNOWN = "unknown"  # the trace does not say what prompts share
    NOTHING = "nothing"  # no policy makes a difference that anybody would notice
    LITTLE = "little"  # it could be made, but pbkv does not make it
    PAYS = "pays"


@dataclass(frozen=True, slots=True)
class Findings:
    """The answer, and why."""

    verdict: Verdict
    reasons: tuple[str, ...]  # sentences


@dataclass(frozen=True, slots=True)
class Comparison:
    """The policies at one size."""

    size: Size
    lru: Outcome
    pbkv: Outcome
    clairvoyant: Outcome

    @property
    def ttft(self) -> float:
        """LRU's mean time to the first token over `pbkv`'s."""
        return _ratio(self.lru.ttft_mean_s, self.pbkv.ttft_mean_s)

    @property
    def latency(self) -> float:
        """LRU's mean seconds of a workflow over `pbkv`'s."""
        return _ratio(self.lru.latency_mean_s, self.pbkv.latency_mean_s)

    @property
    def noticeable(self) -> bool:
        """Whether users notice that it is `pbkv`."""
        return self.ttft >= _NOTICEABLE_TTFT or self.latency >= _NOTICEABLE_LATENCY

    @property
    def best_ttft(self) -> float:
        """LRU's mean time to the first token over that of the best policy known."""
        return max(self.ttft, _ratio(self.lru.ttft_mean_s, self.clairvoyant.ttft_mean_s))

    @property
    def best_latency(self) -> float:
        return max(self.latency, _ratio(self.lru.latency_mean_s, self.clairvoyant.latency_mean_s))


def comparisons(outcomes: Sequence[Outcome]) -> list[Comparison]:
    """The outcomes by size, in their order."""
    by_size: dict[Size, dict[str, Outcome]] = {}
    for each in outcomes:
        by_size.setdefault(each.size, {})[each.policy] = each
    return [Comparison(size, each[LRU], each[PBKV], each[CLAIRVOYANT]) for size, each in by_size.items()]


def focus(found: Sequence[Comparison]) -> Comparison:
    """The size at which the policy matters most: where LRU recomputes most beyond what it must."""
    return max(found, key=lambda each: each.lru.recomputed_tokens - each.clairvoyant.recomputed_tokens)


def findings(
    potential: Potential, pseudo_share: float, found: Sequence[Comparison], context_share: dict[Size, float]
) -> Findings:
    """Judges.

    Args:
        potential: what an infinite cache would save.
        pseudo_share: of the prompt tokens, whose text nobody knows.
        found: the policies at each size.
        context_share: by size, GPU memory over the contexts of open workflows.
    """
    rate = potential.available_tokens / max(1, potential.prompt_tokens)
    unknown = f"The trace holds lengths only for {100 * pseudo_share:.0f} % of the prompt tokens: what they share is unknown."
    if pseudo_share > 1 - _NOTHING_SHARED:
        return Findings(Verdict.UNKNOWN, (unknown, "Record prompts as hashes (pbkv record) to find out."))
    doubts = (unknown,) if pseudo_share else ()
    if rate < _NOTHING_SHARED:
        shared = f"Nothing to save: no shared prefixes. An infinite cache would have {100 * rate:.1f} % of the prompt tokens."
        return Findings(Verdict.UNKNOWN if pseudo_share > 0.5 else Verdict.NOTHING, (shared, *doubts))
    verdict, reasons = _judge(potential, found, context_share)
    return Findings(verdict, (*reasons, *_where_worse(found, context_share), *doubts))


def _judge(
    potential: Potential, found: Sequence[Comparison], context_share: dict[Size, float]
) -> tuple[Verdict, tuple[str, ...]]:
    worst = max(found, key=lambda each: each.lru.recomputed_tokens)
    kept = 1 - worst.lru.recomputed_tokens / max(1, worst.lru.available_tokens)
    if kept > 1 - _ALL_KEPT:
        text = f"Nothing to gain over LRU: it keeps {100 * kept:.1f} % of what could be kept even in the smallest memory tried."
        return Verdict.NOTHING, (text,)
    prefill = f"prefill is {_percent(worst.lru.prefill_share)} of a workflow's time under LRU, pauses included"
    most = max(found, key=lambda each: each.best_ttft * each.best_latency)
    if most.best_ttft < _NOTICEABLE_TTFT and most.best_latency < _NOTICEABLE_LATENCY:
        text = (
            f"Nothing that anybody would notice: {prefill}. Even a policy that knows the future makes first tokens "
            f"{_faster(most.best_ttft)} and workflows {_faster(most.best_latency)}, at the best of these sizes."
        )
        return Verdict.NOTHING, (text, *_tokens(focus(found), context_share))
    best = max(found, key=lambda each: each.ttft * each.latency)
    if not best.noticeable:
        text = (
            f"Little: a policy that knows the future would make first tokens {_faster(most.best_ttft)} and workflows "
            f"{_faster(most.best_latency)} ({_at(most, context_share)}), but pbkv does not ({prefill})."
        )
        return Verdict.LITTLE, (text, *_tokens(focus(found), context_share))
    text = (
        f"It pays where memory is short. With {_at(best, context_share)}, and compared with LRU, pbkv makes "
        f"first tokens {_faster(best.ttft)} and workflows {_faster(best.latency)}; {prefill}."
    )
    return Verdict.PAYS, (text, *_tokens(best, context_share), *_where_not(found))


def _tokens(each: Comparison, context_share: dict[Size, float]) -> Iterator[str]:
    yield (
        f"With {_at(each, context_share)}, LRU recomputes {each.lru.recomputed_tokens:,} tokens, pbkv "
        f"{each.pbkv.recomputed_tokens:,}, clairvoyance {each.clairvoyant.recomputed_tokens:,} of "
        f"{each.lru.available_tokens:,} that could be kept."
    )


def _where_not(found: Sequence[Comparison]) -> Iterator[str]:
    if quiet := sum(not each.noticeable for each in found):
        yield f"At {quiet} of the {len(found)} sizes that were tried, nobody would notice a difference."


def _where_worse(found: Sequence[Comparison], context_share: dict[Size, float]) -> Iterator[str]:
    for each in found:
        if min(each.ttft, each.latency) < _WORSE:
            yield (
                f"pbkv is worse than LRU with {_at(each, context_share)}: first tokens {_faster(each.ttft)}, "
                f"workflows {_faster(each.latency)}."
            )


def _at(each: Comparison, context_share: dict[Size, float]) -> str:
    host = each.size.host_blocks / each.size.gpu_blocks
    more = "no host tier" if not host else "as much in the host" if host == 1 else f"{host:.2g} times as much in the host"
    return f"GPU memory for {100 * context_share[each.size]:.0f} % of the open contexts and {more}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _faster(ratio: float) -> str:
    if ratio >= 1.1:
        return f"{ratio:.2f} times as fast"
    return f"{100 * (ratio - 1):.1f} % faster" if ratio >= 1 else f"{100 * (1 / ratio - 1):.1f} % slower"


def _ratio(lru: float, other: float) -> float:
    return lru / other if other else 1.0
