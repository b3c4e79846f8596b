"""Options of engines: an error names the one that is wrong."""

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.integrations.engine_store import StoreSettings


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"region_byte": 1}, "region_byte"),
        ({"region_bytes": 0}, "region_bytes"),
        ({"region_bytes": "much"}, "region_bytes"),
        ({"name": "a/b"}, "name"),
        ({"endpoint": "localhost"}, "endpoint"),
        ({"redis_url": "http://x"}, "redis_url"),
        ({"threads": True}, "threads"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        StoreSettings.of(options)
    assert caught.value.field == field


def test_redis_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBKV_REDIS_URL", "redis://:secret@host:1/0")
    settings = StoreSettings.of({"endpoint": "grpc://127.0.0.1:50061"})
    assert (settings.redis_url, settings.endpoint) == ("redis://:secret@host:1/0", "127.0.0.1:50061")
    assert "secret" not in repr(settings)
