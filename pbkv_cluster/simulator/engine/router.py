"""The production router in virtual time: chooses the worker of each step from what a gateway knows, without its delays."""

from collections import Counter
from collections.abc import Sequence

from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier, Usage
from pbkv_cluster.gateway.routing.load import StepLoad
from pbkv_cluster.gateway.routing.router import Candidate, Costs, choose
from pbkv_cluster.gateway.routing.speeds import OutputLength, PrefillSpeed
from pbkv_cluster.simulator.engine.worker import SimulatedWorker
from pbkv_cluster.simulator.workload.token_source import NAMESPACE, StepTokens


class SimulatedRouter:
    """A gateway's view of the workers. It learns speeds and lengths of outputs as one does, and sees each block at once."""

    def __init__(self, workers: Sequence[SimulatedWorker], parallelism: int) -> None:
        """Args:
        workers: at least one.
        parallelism: steps that a worker runs at once.
        """
        self._workers = workers
        self._parallelism = parallelism
        self._speed = PrefillSpeed()
        self._lengths = OutputLength()
        self.decisions: Counter[str] = Counter()

    def place(self, step: str, tokens: StepTokens, last: SimulatedWorker | None) -> SimulatedWorker:
        """Chooses the worker of a step, and counts the step there.

        Args:
            step: its id.
            tokens: its prompt and output.
            last: the worker that ran the workflow's step before.
        """
        keys = tokens.keys[: count(tokens.prompt) // BLOCK_TOKENS]
        candidates = [self._candidate(worker, tokens.prompt, keys, last) for worker in self._workers]
        choice = choose(candidates, Costs(self._speed.seconds_per_token, self._parallelism))
        self.decisions[choice.reason] += 1
        at = next(number for number, worker in enumerate(self._workers) if worker.id == choice.worker_id)
        chosen = candidates[at]
        computed = max(count(tokens.prompt) - chosen.gpu_tokens - chosen.host_tokens - chosen.pending_tokens, 1)
        self._workers[at].load.add(step, StepLoad(keys, computed + self._lengths.expected(count(tokens.output))))
        return self._workers[at]

    def ended(self, step: str, worker: SimulatedWorker, usage: Usage) -> None:
        """Takes note of a step's end, and of how long it took."""
        worker.load.discard(step)
        worker.speed.add(usage)
        self._speed.add(usage)
        self._lengths.add(usage)

    def _candidate(
        self, worker: SimulatedWorker, prompt: bytes, keys: Sequence[bytes], last: SimulatedWorker | None
    ) -> Candidate:
        captured = {} if len(self._workers) == 1 else worker.cache.captured(NAMESPACE, prompt)  # the gateway asks neither
        cached = sum(captured.values())
        return Candidate(
            worker_id=worker.id,
            gpu_tokens=captured.get(Tier.GPU, 0),
            host_tokens=cached - captured.get(Tier.GPU, 0),
            pending_tokens=max(worker.load.pending_tokens(keys) - cached, 0),
            queued_tokens=worker.load.tokens,
            token_s=worker.speed.seconds_per_token,
            served_last=worker is last,
        )
