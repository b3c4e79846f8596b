"""What is simulated, apart from the workload."""

from dataclasses import dataclass, field

from pbkv_cluster.core.config import CacheConfig, EngineConfig, PredictorConfig
from pbkv_cluster.reuse.model.access_models import AccessModels
from pbkv_cluster.simulator.engine.cost_model import CostModel


@dataclass(frozen=True, slots=True)
class Setup:
    """Workers that are alike, and what they have learnt."""

    gpu_blocks: int  # of each worker
    host_blocks: int = 0  # likewise
    disk_blocks: int = field(default=0, kw_only=True)  # likewise
    policy: str = "lru"
    adversary: bool = False  # negate the policy's values
    noise: float = 0.0  # share of the forecasts that are random
    seed: int = 0  # of the noise
    workers: int = 1
    predictor_state: bytes | None = None  # of a predictor that was trained before the run
    access: AccessModels | None = None  # trained before the run, which learns on in a copy; None: the prior alone
    cost: CostModel = field(default_factory=CostModel)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
