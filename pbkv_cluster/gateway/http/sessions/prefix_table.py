"""Which workflow has had a prompt that begins in a given way. Bounded in bytes, and fair to tenants."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pbkv_cluster.gateway.http.sessions.chains import MIN_CHARACTERS, Beginning

ENTRY_BYTES = 400  # of a key with its owners' list, measured with CPython 3.11
OWNER_BYTES = 200  # of a workflow's and an agent's name in it
_OWNERS = 8  # most of one key

_Owner = tuple[str, str]  # workflow and agent; an answer has no agent


@dataclass(slots=True)
class _Tenant:
    """The entries of one tenant, the one used least recently first."""

    entries: "OrderedDict[int, list[_Owner]]" = field(default_factory=OrderedDict)
    size_bytes: int = 0


class PrefixTable:
    """Beginnings of prompts and the workflows that have had them, the latest of each key last.

    When there is no more room, the tenant that takes most of it loses the entry that it used least recently.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._tenants: dict[str, _Tenant] = {}
        self.size_bytes = 0

    def find(self, tenant: str, beginnings: Sequence[Beginning], agent: str) -> list[str]:
        """Workflows that a prompt may continue, the best first: longest beginning, then latest.

        A workflow in which the same agent has had the very same prompt is not among them: that prompt begins another one.
        """
        table = self._tenants.get(tenant)
        if table is None or not beginnings:
            return []
        found: dict[str, None] = {}
        begun = {workflow for workflow, owner in table.entries.get(beginnings[-1].key, ()) if owner == agent}
        for beginning in reversed(beginnings):
            if beginning.characters < MIN_CHARACTERS or (owners := table.entries.get(beginning.key)) is None:
                continue
            table.entries.move_to_end(beginning.key)
            found |= {workflow: None for workflow, _ in reversed(owners) if workflow not in begun}
        return list(found)

    def add(self, tenant: str, beginning: Beginning, workflow: str, agent: str = "") -> None:
        """Notes that a prompt of a workflow, or with no agent its prompt and answer, reads so."""
        if beginning.characters < MIN_CHARACTERS:
            return
        table = self._tenants.setdefault(tenant, _Tenant())
        owners = table.entries.get(beginning.key)
        if owners is None:
            owners = table.entries[beginning.key] = []
            self._grow(table, ENTRY_BYTES)
        owner = (workflow, agent)
        if owner in owners:
            owners.remove(owner)
        else:
            self._grow(table, OWNER_BYTES)
        owners.append(owner)
        if len(owners) > _OWNERS:
            del owners[0]
            self._grow(table, -OWNER_BYTES)
        table.entries.move_to_end(beginning.key)
        while self.size_bytes > self._capacity_bytes:
            self._drop_one()

    def _drop_one(self) -> None:
        name, table = max(self._tenants.items(), key=lambda each: each[1].size_bytes)
        _, owners = table.entries.popitem(last=False)
        self._grow(table, -ENTRY_BYTES - OWNER_BYTES * len(owners))
        if not table.entries:
            del self._tenants[name]

    def _grow(self, table: _Tenant, size_bytes: int) -> None:
        table.size_bytes += size_bytes
        self.size_bytes += size_bytes
