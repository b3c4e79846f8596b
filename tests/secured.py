"""Security of the process that runs a test: API keys, certificates."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pbkv_cluster.core.config import SecurityConfig
from pbkv_cluster.rpc.security import set_up_security, stop_security

CLUSTER_KEY = "the-cluster-key-of-a-test"
RED, BLUE, OPERATOR = "key-of-tenant-red-0001", "key-of-tenant-blue-001", "key-of-an-operator-001"
KEYS = f"[{{key: {RED}, tenant: red}}, {{key: {BLUE}, tenant: blue}}, {{key: {OPERATOR}, operator: true}}]"


@contextmanager
def secured(folder: Path, **settings: str | bool) -> Iterator[SecurityConfig]:
    """Keys are asked for; this process shows the cluster key. `settings` are further fields of the configuration."""
    file = folder / "keys.yaml"
    file.write_text(KEYS)
    config = SecurityConfig.model_validate({"credentials": str(file), **settings})
    set_up_security(config, CLUSTER_KEY)
    try:
        yield config
    finally:
        stop_security()
