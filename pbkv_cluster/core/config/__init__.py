"""Configuration: one typed `tree` of sections, read from defaults, a YAML file, the environment and flags (`sources`).

`section` has what all sections share, `cache`, `engine`, `stores` and `monitoring` hold some of them, and `page` writes
docs/configuration.md.
"""

from pbkv_cluster.core.config.cache import CacheConfig
from pbkv_cluster.core.config.engine import EngineConfig
from pbkv_cluster.core.config.engines import PluginsConfig, SidecarConfig, SidecarEngine, VllmConfig
from pbkv_cluster.core.config.limits import LimitsConfig
from pbkv_cluster.core.config.monitoring import LoggingConfig, OtelConfig, TelemetryConfig
from pbkv_cluster.core.config.security import SecurityConfig
from pbkv_cluster.core.config.sources import Origin, Settings, load
from pbkv_cluster.core.config.stores import HostStoreConfig, RedisConfig
from pbkv_cluster.core.config.tree import (
    ClusterConfig,
    Config,
    GatewayConfig,
    ModelConfig,
    PredictorConfig,
)

__all__ = [
    "CacheConfig",
    "ClusterConfig",
    "Config",
    "EngineConfig",
    "GatewayConfig",
    "HostStoreConfig",
    "LimitsConfig",
    "LoggingConfig",
    "ModelConfig",
    "Origin",
    "OtelConfig",
    "PluginsConfig",
    "PredictorConfig",
    "RedisConfig",
    "SecurityConfig",
    "Settings",
    "SidecarConfig",
    "SidecarEngine",
    "TelemetryConfig",
    "VllmConfig",
    "load",
]
