"""What the documents mark with `<!-- run -->` runs against a real cluster, with only the addresses replaced."""

import inspect
from pathlib import Path

import pytest

from pbkv_cluster.cli.main import app, main
from pbkv_cluster.cli.page import commands
from pbkv_cluster.cluster.local import LocalCluster
from tests.docs.pages import DOCUMENTS, blocks, shell_commands, title

RUN = [document for document in DOCUMENTS if any(block.is_run for block in blocks(document))]
WITH_ENDPOINT = [name.split()[1:] for name, each in commands(app) if "endpoint" in inspect.signature(each).parameters]


def run_command(words: list[str], gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a `pbkv` command, which must succeed and print something."""
    if any(words[: len(name)] == name for name in WITH_ENDPOINT):
        words = [*words, "--endpoint", gateway]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    captured = capsys.readouterr()
    assert not ended.value.code, f"pbkv {' '.join(words)}: {captured.err}"
    assert captured.out.strip(), f"pbkv {' '.join(words)} prints nothing"


@pytest.mark.parametrize("document", RUN, ids=title)
def test_marked_blocks_run(document: Path, cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    for block in (each for each in blocks(document) if each.is_run):
        text = block.text.replace("127.0.0.1:26100", cluster.gateway_address).replace("127.0.0.1:26180", cluster.http_address)
        if block.language == "python":
            exec(compile(text, title(document), "exec"), {})
            assert capsys.readouterr().out.strip(), "the example prints what it got"
        else:
            for words in shell_commands(text):
                run_command(words, cluster.gateway_address, capsys)


def test_the_quick_start_is_run() -> None:
    assert "docs/quickstart.md" in map(title, RUN)
