"""The configuration file that `pbkv tune` writes: settings that differ from the defaults, and why."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pbkv_cluster.core.config import Config, Settings
from pbkv_cluster.core.config.sources import env_name, fields, value_of

if TYPE_CHECKING:
    from pbkv_cluster.simulator.tuning.knobs import Values
    from pbkv_cluster.simulator.tuning.result import Tuning

_WIDTH = 4  # digits of a score


def tuned_file(found: "Tuning", settings: Settings) -> str:
    """The text of the file. It includes settings from the file and flags given to `pbkv tune`, so that it can replace them, but
    not those from the environment.
    """
    chosen, default = found.chosen, Config()
    sections: dict[str, list[str]] = {}
    for path, _ in fields():
        section, name = path.split(".")
        present, usual = value_of(settings.config, path), value_of(default, path)
        given = settings.origins[path].name not in ("default", env_name(path))
        value = chosen.get(path, present if given else usual)
        if value != usual:
            why = f"  # default {_scalar(usual)}" if path in chosen else ""
            sections.setdefault(section, []).append(f"  {name}: {_scalar(value)}{why}")
    lines = [
        "# Written by `pbkv tune`. Settings that are not listed have their defaults.",
        *(f"# {line}" for line in summary(found, settings.config)),
    ]
    for section, entries in sections.items():
        lines += ["", f"{section}:", *entries]
    return "\n".join(lines) + "\n"


def summary(found: "Tuning", config: Config) -> Iterator[str]:
    """The outcome of the search, in a few lines."""
    present = found.held_out_present
    what = {
        "tokens": "Tokens that any tier delivered, over LRU's",
        "latency": "LRU's workflow latency over this",
    }[found.objective.value]
    runs = sum(len(trial.scores) for trial in found.trials)
    yield f"{len(found.trials)} candidates, {runs} runs: {_cells(found)}."
    yield f"{what}, on the tasks of the search: {_score(found.trials[0].score)} with the present settings."
    if found.held_out_winner is None:
        yield f"No candidate did better there, so these are the present settings; on held-out tasks {_score(present.score)}."
        return
    winner = next(trial for trial in found.trials if trial.values == found.held_out_winner.values)
    changed = _changed(found.held_out_winner.values, config)
    yield f"Best there: {_score(winner.score)} with {changed}."
    both = f"{_score(found.held_out_winner.score)}, with the present settings {_score(present.score)}"
    if found.accepted:
        yield f"On held-out tasks: {both}."
    else:
        yield f"On held-out tasks: {both}. That is no gain, so these are the present settings."


def _cells(found: "Tuning") -> str:
    return ", ".join(f"{cell.workload} where LRU gets {100 * cell.measured:.0f} %" for cell in sorted(found.cells))


def _changed(values: "Values", config: Config) -> str:
    different = [f"{path} {_scalar(value)}" for path, value in values.items() if value != value_of(config, path)]
    return ", ".join(different) or "the present settings"


def _score(value: float) -> str:
    return f"{value:.{_WIDTH}f}"


def _scalar(value: Any) -> str:
    """A value in YAML, on one line."""
    import yaml

    text: str = yaml.safe_dump({"_": value}, default_flow_style=False, width=10_000)
    return text.removeprefix("_: ").strip()
