"""Prompts of requests that are no steps. They cost a gateway the same, so each counts as a step while it is read."""

from pbkv_cluster.core.clock import Clock
from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gateway.routing.worker_pool import ModelLimits, WorkerPool
from pbkv_cluster.gateway.step.admission.admission import Admission
from pbkv_cluster.gateway.step.prompt_reader import PromptReader, TokenizedPrompt
from pbkv_cluster.gateway.step.request import Prompt
from pbkv_cluster.gateway.step.step import Step


class CountedPrompts:
    """Reads them."""

    def __init__(self, admission: Admission, prompts: PromptReader, pool: WorkerPool, clock: Clock) -> None:
        """Args:
        admission: of steps.
        prompts: reads prompts of any form.
        pool: knows what the model takes.
        clock: of its steps.
        """
        self._admission = admission
        self._prompts = prompts
        self._pool = pool
        self._clock = clock

    def limits(self) -> ModelLimits:
        """What the model takes.

        Raises:
            Unavailable: no worker says it.
        """
        if (limits := self._pool.limits()) is None:
            raise Unavailable("there is no worker")
        return limits

    async def read(self, prompt: Prompt, size_bytes: int, tenant: str, workflow: str = "") -> TokenizedPrompt:
        """Reads a prompt.

        Args:
            prompt: of any form.
            size_bytes: of its request, as it came in.
            tenant: that it counts for, and whose blocks its keys name.
            workflow: that it counts for; empty: none.

        Raises:
            LimitExceeded: too many requests are in flight already, of all or of the tenant or workflow.
            InvalidArgument: the prompt is empty, or fits in no context.
            Unavailable: there is no worker.
        """
        limits = self.limits()
        reading = Step(self._clock.now(), self._admission.release)
        self._admission.admit(reading, size_bytes)
        try:
            self._admission.charge(reading, tenant, workflow)
            return await self._prompts.read(prompt, limits, tenant)
        finally:
            reading.cancel()
