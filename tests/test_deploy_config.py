"""The sample configuration: it loads, names every field, and shows the true defaults."""

import re
from pathlib import Path

import yaml

from pbkv_cluster.core.config import Config, load
from pbkv_cluster.core.config.sources import fields, value_of

SAMPLE = Path(__file__).parents[1] / "deploy" / "pbkv.yaml"


def test_it_loads() -> None:
    settings = load(SAMPLE)
    assert settings.config.metrics.port == 26161
    assert settings.origins["metrics.port"].name == str(SAMPLE)


def test_it_suits_any_machine() -> None:
    """Workers, device and sizes are left to the machine, so that one with a single GPU starts, and a large one is used."""
    config, default = load(SAMPLE).config, Config()
    assert config.engine == default.engine
    assert config.cluster.workers == default.cluster.workers == 0
    assert (default.engine.device, default.engine.gpu_blocks, default.engine.host_blocks) == ("auto", 0, -1)


def test_it_names_every_field_of_the_tree() -> None:
    assert _all_lines().keys() == {path for path, _ in fields()}


def test_its_commented_fields_show_the_defaults() -> None:
    origins = load(SAMPLE).origins
    shown = {path: value for path, value in _all_lines().items() if origins[path].name == "default"}
    assert shown
    for path, value in shown.items():
        assert value == value_of(Config(), path), path


def _all_lines() -> dict[str, object]:
    """The sample's fields, commented ones included."""
    text = re.sub(r"^  # (\w+: )", r"  \1", SAMPLE.read_text(), flags=re.MULTILINE)
    return {f"{section}.{name}": value for section, entries in yaml.safe_load(text).items() for name, value in entries.items()}
