"""What a shell completes as the values of options. `pbkv --install-completion` sets a shell up for it."""

from collections.abc import Iterable, Iterator

_ORACLE = "oracle"  # the policy that only a simulation can have


def complete_policy(incomplete: str) -> list[str]:
    """Names of reuse policies."""
    return _starting(incomplete, _policies())


def complete_policies(incomplete: str) -> list[str]:
    """Names of reuse policies, separated by commas; only of those that are not there yet."""
    return _next_of_list(incomplete, _policies())


def complete_simulated_policies(incomplete: str) -> list[str]:
    """As `complete_policies`, with the policy that knows the future."""
    return _next_of_list(incomplete, {*_policies(), _ORACLE})


def complete_expert(incomplete: str) -> list[str]:
    """Names of experts of the predictor."""
    from pbkv_cluster.predictor_service.experts import EXPERTS

    return _starting(incomplete, EXPERTS.names())


def complete_assignment(incomplete: str) -> Iterator[tuple[str, str]]:
    """Fields of the configuration up to their equals sign, with their descriptions."""
    from pbkv_cluster.core.config.sources import fields

    for path, description in fields():
        if path.startswith(incomplete):
            yield f"{path}=", description


def _policies() -> set[str]:
    from pbkv_cluster.cache.policies import POLICIES

    return set(POLICIES.names()) - {_ORACLE}


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in sorted(names) if name.startswith(incomplete)]


def _next_of_list(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [before + comma + name for name in _starting(last, names) if name not in given]
