"""Plug-ins by name and by path."""

from collections import OrderedDict

import pytest

from pbkv_cluster.core.errors import InvalidArgument
from pbkv_cluster.core.registry import Registry


@pytest.fixture
def registry() -> Registry[dict[str, int]]:
    registry = Registry[dict[str, int]]("cache.policy")
    registry.register("plain")(dict)
    return registry


def test_a_name_finds_its_factory(registry: Registry[dict[str, int]]) -> None:
    assert registry.get("plain") is dict
    assert registry.names() == ["plain"]


def test_the_decorator_returns_what_it_decorates(registry: Registry[dict[str, int]]) -> None:
    @registry.register("own")
    class Own(dict[str, int]):
        pass

    assert registry.get("own") is Own
    assert registry.names() == ["own", "plain"]


def test_a_path_names_a_factory_that_is_not_registered(registry: Registry[dict[str, int]]) -> None:
    assert registry.get("collections:OrderedDict") is OrderedDict


def test_a_name_cannot_be_taken_twice(registry: Registry[dict[str, int]]) -> None:
    with pytest.raises(ValueError, match=r"cache\.policy 'plain' is registered twice"):
        registry.register("plain")(dict)


@pytest.mark.parametrize("path", ["no_such_package_x:Name", "collections:NoSuchName", "collections.nothing:Name"])
def test_a_wrong_path_is_reported(registry: Registry[dict[str, int]], path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^cache\.policy: .* cannot be imported") as caught:
        registry.get(path)
    assert caught.value.field == "cache.policy"


def test_a_path_must_lead_to_a_callable(registry: Registry[dict[str, int]]) -> None:
    with pytest.raises(InvalidArgument, match="neither a class nor a function"):
        registry.get("string:digits")


@pytest.mark.parametrize("name", ["", "plane", "package.module", ":Name", "collections:", "a:b:c", ".x:y", "a..b:c"])
def test_an_unknown_name_is_answered_with_the_known_ones(registry: Registry[dict[str, int]], name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"choose one of plain, or a path package\.module:Name"):
        registry.get(name)
