"""`pbkv config show`, and the messages about wrong configuration."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pbkv_cluster.cli.main import app, main
from pbkv_cluster.core.config import load
from pbkv_cluster.core.config.sources import fields
from pbkv_cluster.core.locations.urls import MASK, without_password

RUNNER = CliRunner()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file, beside one value from the environment."""
    path = tmp_path / "pbkv.yaml"
    path.write_text("engine:\n  gpu_blocks: 96\n  threads: 2\nredis:\n  url: redis://me:secret@db:6379/0\n")
    monkeypatch.setenv("PBKV_ENGINE_THREADS", "3")
    return path


def run(*args: str) -> str:
    result = RUNNER.invoke(app, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int | str | None, str]:
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return exit_info.value.code, captured.err


def test_json_has_the_source_of_each_value(file: Path) -> None:
    rows = {
        row["field"]: row
        for row in json.loads(run("config", "show", "--config", str(file), "--set", "cluster.workers=4", "--json", "-"))
    }
    assert list(rows) == [path for path, _ in fields()]
    assert (rows["engine.gpu_blocks"]["value"], rows["engine.gpu_blocks"]["origin"]) == (96, str(file))
    assert (rows["engine.threads"]["value"], rows["engine.threads"]["origin"]) == (3, "PBKV_ENGINE_THREADS")
    assert (rows["cluster.workers"]["value"], rows["cluster.workers"]["origin"]) == (4, "flag")
    assert (rows["cache.gamma"]["value"], rows["cache.gamma"]["origin"]) == (0.7, "default")
    assert rows["cache.gamma"]["variable"] == "PBKV_CACHE_GAMMA"
    assert all(row["description"] for row in rows.values())


def test_the_table_shows_every_field(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    table = run("config", "show", "--config", str(file))
    for path, description in fields():
        (line,) = [line for line in table.splitlines() if line.split()[1:2] == [path]]
        assert description in line
    assert "PBKV_ENGINE_THREADS" in table


def test_yaml_is_a_configuration_file(tmp_path: Path, file: Path) -> None:
    text = run("config", "show", "--config", str(file), "--yaml")
    assert yaml.safe_load(text)["engine"]["gpu_blocks"] == 96
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load(again).config.engine.threads == 3


@pytest.mark.parametrize("form", [[], ["--json", "-"], ["--yaml"]])
def test_passwords_are_masked(file: Path, form: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    output = run("config", "show", "--config", str(file), *form)
    assert "secret" not in output
    assert "redis://me:***@db" in output


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("redis://db:6379/0", "redis://db:6379/0"),
        ("redis://me@db", "redis://me@db"),
        ("redis://:p@db:1/2?x=1", "redis://:***@db:1/2?x=1"),
        ("rediss://me:p@q@db", "rediss://me:***@db"),
        ("redis://db?password=p&db=3", "redis://db?password=***&db=3"),
        (
            "redis+sentinel://me:p@one:1,two/main?sentinel_password=q",
            "redis+sentinel://me:***@one:1,two/main?sentinel_password=***",
        ),
        ("redis+cluster://:p@one:1,two:99999", MASK),
        ("redis://[broken:p@db", MASK),
    ],
)
def test_masking_leaves_the_rest_readable(url: str, shown: str) -> None:
    assert without_password(url) == shown


@given(st.text(alphabet=st.characters(categories=["L", "N"]), min_size=12), st.sampled_from(["redis", "rediss", "unix"]))
def test_no_password_survives_masking(password: str, scheme: str) -> None:
    for url in (f"{scheme}://:{password}@db/0", f"{scheme}://me:{password}@db", f"{scheme}://db?password={password}"):
        assert password not in without_password(url)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--set", "engine.gpu_block=3"],
            "engine.gpu_block (from flag): there is no such field; did you mean engine.gpu_blocks?",
        ),
        (["--set", "engine.gpu_blocks=many"], "engine.gpu_blocks (from flag): "),
        (["--set", "engine.gpu_blocks"], "--set: must be SECTION.FIELD=VALUE, got 'engine.gpu_blocks'"),
        (
            ["--set", "cluster.workers=1", "--set", "cluster.workers=2"],
            "--set: cluster.workers is set twice, to '1' and to '2'",
        ),
        (["--json", "-", "--yaml"], "--yaml: cannot be combined with --json"),
        (["--config", "/nowhere.yaml"], "cannot read the configuration file /nowhere.yaml: No such file or directory"),
    ],
)
def test_bad_flags_are_one_clear_line(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    code, error = fails(capsys, "config", "show", *args)
    assert code == 2
    assert error.startswith(f"pbkv: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: [", "is not YAML"),
        ("- 1", "the top level must be a mapping"),
        ("engine:\n  gpu_blocks: -5\n  threads: none\n", "engine.gpu_blocks (from"),
        ("engin:\n  threads: 1\n", "engin.threads (from"),
        ("\x00", "is not YAML"),
    ],
)
def test_bad_files_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    monkeypatch.setenv("PBKV_CONFIG", str(path))
    code, error = fails(capsys, "serve")
    assert code == 2
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1


def test_an_unknown_variable_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PBKV_ENGINE_THREAD", "1")
    code, error = fails(capsys, "config", "show")
    assert code == 2
    assert "did you mean PBKV_ENGINE_THREADS?" in error


def test_validate_says_all_that_is_wrong_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("engine:\n  gpu_blocks: many\n  gpu_block: 3\nnowhere: 1\nredis:\n  lease_s: -1\n")
    with pytest.raises(SystemExit) as ended:
        main(["config", "validate", str(path), "--json", str(tmp_path / "found.json")])
    assert ended.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    begins = (
        "engine.gpu_block (from ",
        f"{path}: nowhere: must be a section",
        "engine.gpu_blocks (from ",
        "redis.lease_s (from ",
    )
    for begin in begins:
        assert [line for line in lines if line.startswith(begin)], begin
    assert json.loads((tmp_path / "found.json").read_text()) == {"file": str(path), "problems": lines}


def test_validate_accepts_a_right_file_whatever_the_environment_says(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PBKV_ENGINE_GPU_BLOCKS", "many")
    assert run("config", "validate", str(file)) == f"{file} is right\n"
    monkeypatch.setenv("PBKV_CONFIG", str(file))
    assert run("config", "validate") == f"{file} is right\n"


def test_validate_knows_the_names_of_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("cache: {policy: nosuch, host_policy: neither}")
    with pytest.raises(SystemExit) as ended:
        main(["config", "validate", str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert (ended.value.code, [line.partition(":")[0] for line in lines]) == (2, ["cache.policy", "cache.host_policy"])


def test_validate_wants_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PBKV_CONFIG", raising=False)
    assert fails(capsys, "config", "validate") == (2, "pbkv: FILE: is missing; give it, or set PBKV_CONFIG\n")
