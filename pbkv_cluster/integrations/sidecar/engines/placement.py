"""The engine of a step: the gateway's choice between workers, from what is known of engines."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from pbkv_cluster.core.errors import Unavailable
from pbkv_cluster.gateway.decisions import Decisions
from pbkv_cluster.gateway.routing.contexts import Contexts
from pbkv_cluster.gateway.routing.router import Costs, KnownContexts, candidates, choose
from pbkv_cluster.gateway.routing.speeds import PrefillSpeed
from pbkv_cluster.integrations.sidecar.engines.engine import Engine
from pbkv_cluster.integrations.sidecar.engines.fleet import Fleet
from pbkv_cluster.integrations.sidecar.engines.prompts import RoutedPrompt
from pbkv_cluster.store.block_map import WorkerKey


class Placed(NamedTuple):
    """The choice for a step."""

    engine: Engine
    cached_tokens: int  # of its prompt, that it need not compute there


class Placement:
    """Chooses among the engines that answer."""

    def __init__(self, fleet: Fleet, contexts: Contexts, decisions: Decisions, max_running: int) -> None:
        """Args:
        fleet: the engines.
        contexts: of the agents of open workflows, in pieces of text.
        decisions: counts the reasons of choices.
        max_running: steps that an engine runs at once.
        """
        self.prefill = PrefillSpeed()
        self._fleet = fleet
        self._contexts = contexts
        self._decisions = decisions
        self._max_running = max_running

    def choose(
        self,
        prompt: RoutedPrompt,
        workflow: str,
        agent: str,
        last: WorkerKey | None,
        weight: Callable[[str], float],
        avoid: Collection[Engine] = (),
    ) -> Placed:
        """The engine where a step should finish first.

        Args:
            prompt: of the step.
            workflow: its id.
            agent: that calls.
            last: the engine that had the workflow's latest step.
            weight: for how much each agent's context counts, as forecast.
            avoid: engines that have been asked in vain.

        Raises:
            Unavailable: no other engine answers.
        """
        live = self.live(avoid)
        cached = [engine.cached(prompt) for engine in live]
        keys = dict.fromkeys((engine.key for engine in live), prompt.keys)
        contexts = self._contexts.known(workflow, agent, keys, weight) if len(live) > 1 else KnownContexts()
        found = candidates(live, cached, list(keys.values()), contexts, last)
        choice = choose(found, Costs(self.prefill.seconds_per_token, self._max_running))
        self._decisions[choice.reason] += 1
        at = [engine.name for engine in live].index(choice.worker_id)
        return Placed(live[at], found[at].cached_tokens)

    def reachable(self) -> list[Engine]:
        """The engines that answer."""
        return self._fleet.live()

    def live(self, avoid: Collection[Engine] = ()) -> list[Engine]:
        """The engines that a request can go to, the least loaded first.

        Raises:
            Unavailable: there are none.
        """
        live = [engine for engine in self.reachable() if engine not in avoid]
        if not live:
            names = ", ".join(engine.name for engine in self._fleet.engines)
            raise Unavailable(f"no engine answers ({names})")
        return sorted(live, key=lambda engine: (engine.steps.tokens, engine.name))
