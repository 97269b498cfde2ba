"""What is logged at which verbosity."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from ipvs_proxy.agent.logs import configure, set_verbosity


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
