"""docs/configuration.md: up to date, every setting with a unit, and variables and defaults that are true."""

import json
from pathlib import Path

from pbkv_cluster.core.config import Config, load
from pbkv_cluster.core.config.page import page, settings
from pbkv_cluster.core.config.sources import env_name, fields

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
PURE_NUMBERS = {
    "cache.gamma",
    "cache.guard_confidence",
    "cache.shared_prior",
    "gateway.retry_limit",
    "host_store.numa_node",
    "predictor.smoothing",
    "predictor.subscriber_queue",
}


def test_the_page_is_what_the_types_say() -> None:
    assert PAGE.read_text() == page(), "run: python -m pbkv_cluster.core.config.page docs/configuration.md"


def test_every_setting_is_listed_once_with_a_description() -> None:
    assert [each.path for each in settings()] == [path for path, _ in fields()]
    assert [each.path for each in settings() if not each.description] == []


def test_every_number_has_a_unit_unless_it_is_a_port_or_a_pure_number() -> None:
    numbers = {each.path: each.unit for each in settings() if each.kind.startswith(("integer", "number"))}
    without = {path for path, unit in numbers.items() if not unit}
    assert {path for path in without if not path.endswith("port")} == PURE_NUMBERS


def test_the_variables_and_defaults_that_it_names_are_true() -> None:
    text = PAGE.read_text()
    for each in settings():
        assert f"| `{each.path}` | `{env_name(each.path)}` | {each.kind} | `{each.default}` |" in text
    named = {env_name(each.path): str(json.loads(each.default)) for each in settings()}
    loaded = load(env=named)
    assert loaded.config == Config()
    assert {path: origin.name for path, origin in loaded.origins.items()} == {path: env_name(path) for path, _ in fields()}
