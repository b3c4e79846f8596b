"""Registries: how the plug-ins of every extension point are named and found."""

import importlib
from collections.abc import Callable
from typing import Generic, TypeVar

from pbkv_cluster.core.errors import InvalidArgument

T = TypeVar("T")


class Registry(Generic[T]):
    """Factories by name. One that is not registered is found by its path, `package.module:Name`."""

    def __init__(self, field: str) -> None:
        """Args:
        field: configuration field whose value is the name, for error messages.
        """
        self._field = field
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Registers the decorated class or function under `name`."""

        def add(factory: Callable[..., T]) -> Callable[..., T]:
            if name in self._factories:
                raise ValueError(f"{self._field} {name!r} is registered twice")
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._factories)

    def get(self, name: str) -> Callable[..., T]:
        """The factory called `name`.

        Raises:
            InvalidArgument: there is no such factory.
        """
        if name in self._factories:
            return self._factories[name]
        module, _, attribute = name.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), attribute)):
            raise InvalidArgument(
                self._field, f"{name!r} is unknown; choose one of {', '.join(self.names())}, or a path package.module:Name"
            )
        try:
            factory: Callable[..., T] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InvalidArgument(self._field, f"{name!r} cannot be imported: {error}") from error
        if not callable(factory):
            raise InvalidArgument(self._field, f"{name!r} is neither a class nor a function")
        return factory
