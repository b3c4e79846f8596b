"""What each tenant has been served, in tokens of work over its weight; the one that has been served least is next.

Counters of served tokens, as the Virtual Token Counter (Sheng et al., Fairness in serving large language models, OSDI 2024)
and start-time fair queueing (Goyal et al., SIGCOMM 1996) keep them: who begins to wait starts no lower than where the others
are, so that nobody saves up service while it asks for none.

Of two tenants that both wait all the time, neither gets ahead of the other by more than what one step of each costs, over its
weight: `|served(a) / weight(a) - served(b) / weight(b)| <= most(a) / weight(a) + most(b) / weight(b)`.
"""

from collections.abc import Collection, Iterable, Mapping

_REMEMBERED = 1024  # tenants of which nothing waits, and which are ahead


class Shares:
    """Served tokens of each tenant over its weight."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """`weights`: of tenants; all others have 1."""
        self._weights = weights
        self._served: dict[str, float] = {}
        self._level = 0.0  # where the tenant was when it was chosen last: nobody who waits is below it

    def __len__(self) -> int:
        """Tenants that have a counter."""
        return len(self._served)

    def begins_to_wait(self, tenant: str) -> None:
        """Called when a tenant has a step that waits and had none before."""
        self._served[tenant] = max(self._served.get(tenant, 0.0), self._level)

    def next_of(self, tenants: Iterable[str]) -> str:
        """Of all the tenants that wait, the one that has been served least, and so is next; among equals the first.

        Who begins to wait from now on starts where it is now, whatever is charged to it until its step has been let go.
        """
        tenant = min(tenants, key=self._served.__getitem__)
        self._level = max(self._level, self._served[tenant])
        return tenant

    def charge(self, tenant: str, tokens: int) -> None:
        """The tenant has been served so many tokens."""
        self._served[tenant] = self._served.get(tenant, self._level) + tokens / self._weights.get(tenant, 1.0)

    def in_order(self, tenants: Iterable[str]) -> list[str]:
        """Tenants that wait, least served first."""
        return sorted(tenants, key=self._served.__getitem__)

    def forget(self, waiting: Collection[str]) -> None:
        """Drops tenants that need no counter: they do not wait, and would start at the common level anyway."""
        if len(self._served) <= len(waiting) + _REMEMBERED:
            return
        idle = {tenant: served for tenant, served in self._served.items() if tenant not in waiting}
        ahead = sorted((tenant for tenant, served in idle.items() if served > self._level), key=idle.__getitem__)
        for tenant in idle.keys() - set(ahead[-_REMEMBERED // 2 :]):
            del self._served[tenant]
