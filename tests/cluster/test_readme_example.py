"""The README's Python examples run, with only the address replaced."""

import re
from pathlib import Path

import pytest

from pbkv_cluster.cluster.local import LocalCluster

README = Path(__file__).resolve().parents[2] / "README.md"


def test_examples_run(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        assert "127.0.0.1:26100" in example
        exec(compile(example.replace("127.0.0.1:26100", cluster.gateway_address), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip(), "the examples print what they got"
