"""What the cache hands out: a running sequence's hold on it."""

from pbkv_cluster.cache.sequence.block_table import BlockTable
from pbkv_cluster.cache.sequence.recorded_step import RecordedStep
from pbkv_cluster.cache.tiers.transfer import LayerArrival, Transfer
from pbkv_cluster.cache.tree.node import Node, Owner
from pbkv_cluster.core.usage import Tier


class CacheHandle:
    """A running sequence's hold on its cached prefix, and its block table."""

    __slots__ = (
        "ahead",
        "continued",
        "delivered",
        "fetched",
        "owner",
        "prefetched_tokens",
        "recorded",
        "records",
        "staged",
        "table",
        "waits_for",
    )

    def __init__(self, owner: Owner, root: Node, recorded: RecordedStep, records: bool) -> None:
        self.owner = owner
        self.recorded = recorded
        self.records = records  # whether this handle writes the record, as opposed to a shadow's, which reads it
        self.table = BlockTable(root, recorded)
        self.continued = False  # the tree has more of the sequence than it had when the handle was opened, in slower tiers
        self.waits_for: list[Transfer] = []  # transfers that write slots of the table; some may be done
        self.ahead: int | None = None  # tokens that were to be computed before its own; None: nothing was to be fetched
        self.delivered: dict[Tier, int] = {}  # tokens found when the handle was opened, by tier
        self.fetched: dict[Tier, int] = {}  # those of them that other workers had
        self.staged: dict[Tier, int] = {}  # those of them that were staged, by where they lay
        self.prefetched_tokens = 0  # those of them on the GPU that were prefetched

    @property
    def ready(self) -> bool:
        """Whether everything in the table has arrived. Before that, a step may only compute on it by its `arrivals`."""
        if self.waits_for:
            self.waits_for = [transfer for transfer in self.waits_for if not transfer.done]
        return not self.waits_for

    @property
    def arrivals(self) -> list[LayerArrival] | None:
        """What a step must wait for in each layer, since it has not arrived yet; None: some of it does not come by layers."""
        arrivals = [transfer.layers for transfer in self.waits_for if not transfer.done]
        by_layers = [each for each in arrivals if each is not None]
        return by_layers if len(by_layers) == len(arrivals) else None

    @property
    def seconds_left(self) -> float | None:
        """How long until it is ready, if all that has not arrived comes layer by layer."""
        arrivals = self.arrivals
        return None if arrivals is None else max((each.seconds_left() for each in arrivals), default=0.0)

    @property
    def committed(self) -> int:
        """Blocks that belong to the tree."""
        return self.table.committed
