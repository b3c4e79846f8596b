"""The log of a process: one record a line, with the fields that are known."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.contextvars import clear_contextvars

from pbkv_cluster.core.config import LoggingConfig
from pbkv_cluster.core.logs.fields import bind
from pbkv_cluster.core.logs.setup import set_up_logs

log = logging.getLogger("pbkv_cluster.somewhere")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The handlers and the level of the root logger are the test runner's."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    clear_contextvars()


def set_up(**config: Any) -> io.StringIO:
    stream = io.StringIO()
    set_up_logs(LoggingConfig.model_validate(config), "worker-0", stream)
    return stream


def records(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def handled_by_ray(record: logging.LogRecord) -> bool:
    """Adds the field that Ray's record factory gives every record of its processes."""
    record.__dict__["_ray_timestamp_ns"] = 7
    return True


def test_a_record_of_text_is_one_line_and_does_not_steer_a_terminal() -> None:
    stream = set_up(format="console")
    log.warning("agent %s:\u2028é", "a\n2026 [error] forged\x1b[2J")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert r"agent a\n2026 [error] forged\x1b[2J:\u2028é" in line


def test_a_record_of_json_is_one_line_with_its_fields() -> None:
    stream = set_up(format="json")
    bind(workflow="w\n1", step=3)
    log.addFilter(handled_by_ray)
    log.warning("it took %.1f s:\n%s", 1.5, "why", extra={"reason": "route_prefix"})
    log.removeFilter(handled_by_ray)
    (record,) = records(stream)
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "it took 1.5 s:\nwhy",
        "level": "warning",
        "logger": "pbkv_cluster.somewhere",
        "member": "worker-0",
        "workflow": "w\n1",
        "step": 3,
        "reason": "route_prefix",
    }


def test_an_exception_is_part_of_its_record() -> None:
    stream = set_up(format="json")
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed")
    (record,) = records(stream)
    assert "ValueError: bad" in record["exception"]


def test_text_for_people_has_the_same_fields() -> None:
    stream = set_up()
    log.warning("hello %s", "world", extra={"reason": "r"})
    (line,) = stream.getvalue().splitlines()
    assert "[warning" in line
    assert "hello world" in line
    assert "pbkv_cluster.somewhere" in line
    assert "reason=r" in line
    assert "member=worker-0" in line


def test_the_level_is_the_least_severity() -> None:
    stream = set_up(format="json", level="error")
    log.warning("no")
    log.error("yes")
    assert [record["event"] for record in records(stream)] == ["yes"]


def test_setting_up_again_replaces_what_was_set_up() -> None:
    first, second = set_up(format="json"), set_up(format="json")
    log.warning("once")
    assert first.getvalue() == ""
    assert len(records(second)) == 1


def test_a_process_that_reports_by_itself_logs_what_is_severe() -> None:
    stream = io.StringIO()
    set_up_logs(LoggingConfig(format="json", level="debug"), "head", stream, least=logging.WARNING)
    log.info("no")
    log.warning("yes")
    assert [record["event"] for record in records(stream)] == ["yes"]
