"""What is logged at which verbosity."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from ipvs_proxy.agent.observe.logs import BURST, configure, set_verbosity


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)
    set_verbosity(0)


def test_verbosity_changes_also_for_loggers_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    configure(0, "json")
    log = structlog.get_logger("test")
    log.debug("first")
    log.info("second", answer=42)
    set_verbosity(4)
    log.debug("third")
    set_verbosity(3)
    log.debug("fourth")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("second", "info"), ("third", "debug")]
    assert lines[0]["answer"] == 42


def test_event_that_never_rests_is_thinned_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    configure(0, "json", clock=lambda: now)
    log = structlog.get_logger("test")
    for number in range(1_000):
        log.info("programmed", number=number)
        log.warning("operation_failed")
    log.info("relist")
    now = 10.0
    log.info("programmed", number="next")
    log.info("programmed", number="too early")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    programmed = [(line["number"], line.get("not_logged")) for line in lines if line["event"] == "programmed"]
    assert programmed == [*((number, None) for number in range(BURST)), ("next", 1_000 - BURST)]
    assert sum(line["event"] == "operation_failed" for line in lines) == 1_000
    assert sum(line["event"] == "relist" for line in lines) == 1


def test_nothing_is_thinned_out_for_somebody_who_wants_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    configure(4, "json", clock=lambda: 0.0)
    for _ in range(2 * BURST):
        structlog.get_logger("test").info("programmed")
    assert len(capsys.readouterr().err.splitlines()) == 2 * BURST
