"""The production router in virtual time: chooses the worker of each step from what a gateway knows, without its delays."""

from collections import Counter
from collections.abc import Sequence

from pbkv_cluster.core.tokens import BLOCK_TOKENS, count
from pbkv_cluster.core.usage import Tier
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.load import StepLoad
from pbkv_cluster.gateway.routing.router import CachedTokens, Costs, KnownContexts, candidates, choose
from pbkv_cluster.gateway.routing.speeds import OutputLength, PrefillSpeed
from pbkv_cluster.gpu_worker.engine.output import Output
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
        self._contexts = Contexts()
        self.decisions: Counter[str] = Counter()

    def place(self, step: str, tokens: StepTokens, last: SimulatedWorker | None, workflow: str, agent: str) -> SimulatedWorker:
        """Chooses the worker of a step, and counts the step there.

        Args:
            step: its id.
            tokens: its prompt and output.
            last: the worker that ran the workflow's step before.
            workflow: its id.
            agent: that calls.
        """
        keys = tokens.keys[: count(tokens.prompt) // BLOCK_TOKENS]
        of_all = dict.fromkeys((worker.key for worker in self._workers), keys)
        contexts = self._contexts.known(workflow, agent, of_all) if len(of_all) > 1 else KnownContexts()
        cached = [self._cached(worker, tokens.prompt) for worker in self._workers]
        found = candidates(self._workers, cached, list(of_all.values()), contexts, None if last is None else last.key)
        choice = choose(found, Costs(self._speed.seconds_per_token, self._parallelism))
        self.decisions[choice.reason] += 1
        at = next(number for number, worker in enumerate(self._workers) if worker.id == choice.worker_id)
        worker, output_tokens = self._workers[at], self._lengths.expected(count(tokens.output))
        worker.steps.add(step, StepLoad.expected(keys, count(tokens.prompt), found[at].cached_tokens, output_tokens))
        self._contexts.note(workflow, agent, worker.key, keys)
        return worker

    def ended(self, output: Output, worker: SimulatedWorker, workflow: str, agent: str, keys: Sequence[bytes]) -> None:
        """Takes note of a step's end, of what its last output tells, and of where its blocks lie, whose keys these are."""
        self._contexts.note(workflow, agent, worker.key, keys)
        worker.steps.discard(output.request_id)
        if output.speeds is not None:
            worker.loading.measured(output.speeds)
        if output.usage is not None:
            worker.speed.add(output.usage)
            self._speed.add(output.usage)
            self._lengths.add(output.usage)

    def drop(self, workflow: str) -> None:
        """A workflow has ended."""
        self._contexts.end(workflow)

    def _cached(self, worker: SimulatedWorker, prompt: bytes) -> CachedTokens:
        captured = {} if len(self._workers) == 1 else worker.cache.captured(NAMESPACE, prompt)  # the gateway asks neither
        return CachedTokens(*(captured.get(tier, 0) for tier in (Tier.GPU, Tier.HOST, Tier.DISK)))
