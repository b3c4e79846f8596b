"""All commands: the page about them is up to date, flags are alike, and a wrong address is said in one line."""

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from pbkv_cluster.cli.main import EXIT_CODES, app
from pbkv_cluster.cli.page import commands, flags, page
from tests.cli.conftest import Pbkv

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
COMMANDS = dict(commands(app))
NOBODY = "127.0.0.1:1"
# Arguments that each command with an endpoint needs besides.
NEEDED: dict[str, list[str]] = {
    "pbkv submit": ["hello"],
    "pbkv explain": ["w"],
    "pbkv predictor explain": ["w"],
    "pbkv workflows show": ["w"],
    "pbkv workflows end": ["w"],
    "pbkv cache prefetch": ["hello"],
    "pbkv cache lease": ["hello"],
    "pbkv cache release": ["mine"],
    "pbkv record": ["--out", "TMP/trace.jsonl"],
}
# Doctor goes on, and tells of the address among its findings; its own tests cover that.
WITH_ENDPOINT = [name for name, each in COMMANDS.items() if "endpoint" in inspect.signature(each).parameters]
ONE_LINE = sorted({*WITH_ENDPOINT} - {"pbkv doctor", "pbkv replay"})


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text() == page(), "run: python -m pbkv_cluster.cli.page docs/commands.md"


def test_the_page_has_every_command_flag_and_exit_code() -> None:
    text = PAGE.read_text().replace(r"\|", "|")  # in tables
    for name, function in COMMANDS.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert all(flag.names in section for flag in flags(function)), name
    assert all(f"| {code} | " in text for code in EXIT_CODES)
    for known in ("`--set` `SECTION.FIELD=VALUE`", "`--by` `run|workflow|agent`", "`pbkv explain BLOCK|WORKFLOW`"):
        assert known in text


def test_every_flag_of_every_command_is_documented_and_alike() -> None:
    seen: dict[str, set[str]] = {}
    for name, function in COMMANDS.items():
        assert inspect.getdoc(function), name
        for flag in flags(function):
            assert flag.help.endswith("."), f"{name} {flag.names}"
        for parameter in inspect.signature(function).parameters.values():
            _, info = get_args(parameter.annotation)
            if parameter.name in ("endpoint", "json_target", "config", "assignments", "redis"):
                seen.setdefault(parameter.name, set()).add(str((info.default, info.param_decls)))
    assert {name: len(forms) for name, forms in seen.items()} == dict.fromkeys(seen, 1)


@pytest.mark.parametrize("command", ONE_LINE)
def test_a_wrong_address_is_said_in_one_line(pbkv: Pbkv, command: str, tmp_path: Path) -> None:
    args = [*command.split()[1:], *(each.replace("TMP", str(tmp_path)) for each in NEEDED.get(command, []))]
    for address, code, words in ((NOBODY, 1, "nobody answers at"), ("nonsense", 2, "endpoint: must be HOST:PORT")):
        refused = pbkv(*args, "--endpoint", address)
        assert refused.code == code, refused.err
        assert refused.err.startswith(f"pbkv: {words}"), refused.err
        assert refused.err.count("\n") == 1


def test_a_replay_to_a_wrong_address_is_said_in_one_line(pbkv: Pbkv, tmp_path: Path) -> None:
    from tests.cli.agent_traces import write_trace

    trace: Any = write_trace(tmp_path / "trace.jsonl.gz", workflows=2)
    refused = pbkv("replay", str(trace), "--endpoint", NOBODY)
    assert (refused.code, refused.err.count("\n")) == (1, 1), refused.err


def test_every_command_that_comes_to_a_result_gives_it_as_json() -> None:
    # A cost model and hints are JSON, and the others have no result: they go on until they are stopped.
    without = {"pbkv calibrate", "pbkv hints", "pbkv serve", "pbkv attach", "pbkv otel"}
    with_json = {name for name, each in COMMANDS.items() if "json_target" in inspect.signature(each).parameters}
    assert with_json == {*COMMANDS} - without


def test_top_takes_several_gateways(pbkv: Pbkv) -> None:
    refused = pbkv("top", "--json", "-", "--endpoint", f"{NOBODY},127.0.0.1:2")
    assert re.fullmatch(r"pbkv: nobody answers at 127\.0\.0\.1:[12]: Connection refused\n", refused.err)


def test_commands_with_an_endpoint_were_found() -> None:
    assert len(ONE_LINE) >= 14


@pytest.mark.parametrize("command", WITH_ENDPOINT)
def test_who_connects_may_show_a_key_and_check_a_certificate(command: str) -> None:
    names = {flag.names for flag in flags(COMMANDS[command])}
    assert any("--api-key" in each for each in names), command
    assert any("--tls-ca" in each for each in names), command
