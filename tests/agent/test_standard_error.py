"""A log that nobody reads: real pipes, with readers that are slow, stuck or gone."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_proxy.agent.observe.standard_error import CAPACITY, StandardError

LINE = "x" * 999 + "\n"


class Pipe:
    """A pipe, and what writes to it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.told: list[int] = []
        self.stream = StandardError(self.writer, self._tell)

    def _tell(self, lines: int) -> None:
        self.told.append(lines)
        self.stream.write(f"dropped {lines}\n")

    def read(self, until: str) -> str:
        text = os.read(self.reader, 65536).decode()
        while until not in text:
            text += os.read(self.reader, 65536).decode()
        return text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    # The thread that hands on lives as long as the process: what it waits for ends here.
    os.close(made.reader)
    made.stream.drain(5)
    os.close(made.writer)


def test_what_is_written_arrives_whole_and_in_order(pipe: Pipe) -> None:
    print("a", "b", 1, file=pipe.stream)
    pipe.stream.write("half ")
    pipe.stream.write("of it\nlone \ud800 surrogate\n")
    assert pipe.read("surrogate\n") == "a b 1\nhalf of it\nlone \\ud800 surrogate\n"
    assert pipe.stream.dropped == 0


def test_reader_that_is_stuck_costs_lines_and_no_time(pipe: Pipe) -> None:
    begun = time.monotonic()
    for number in range(10_000):
        pipe.stream.write(f"{number} {LINE}")
    assert time.monotonic() - begun < 2.0
    dropped = pipe.stream.dropped
    assert dropped > 10_000 - (CAPACITY + 65536) / 1000 - 10
    text = ""
    while sum(pipe.told) < dropped:
        text += pipe.read("")
    pipe.stream.write("after\n")
    text += pipe.read("after\n")
    *lines, _ = text.split("\n")
    written = [int(line.split()[0]) for line in lines if line.endswith("x")]
    assert written == sorted(set(written))
    assert len(written) == 10_000 - dropped
    assert pipe.stream.dropped == dropped
    assert lines[-1] == "after"


def test_lines_of_many_threads_stay_whole(pipe: Pipe) -> None:
    def write(name: str) -> None:
        for _ in range(200):
            pipe.stream.write(f"{name * 500}\n")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    text = ""
    while text.count("\n") < 800:
        text += pipe.read("")
    assert {(line[0], len(set(line)), len(line)) for line in text.splitlines()} == {(name, 1, 500) for name in "abcd"}
    for thread in threads:
        thread.join()


def test_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.reader)
    pipe.stream.write("one\ntwo\n")
    pipe.stream.drain(5)
    assert pipe.stream.dropped == 2
    pipe.reader = os.open(os.devnull, os.O_RDONLY)


def test_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    fcntl.fcntl(pipe.writer, fcntl.F_SETFL, fcntl.fcntl(pipe.writer, fcntl.F_GETFL) | os.O_NONBLOCK)
    for _ in range(500):
        pipe.stream.write(LINE)
    pipe.stream.write("end\n")
    assert len(pipe.read("end\n")) == 500 * len(LINE) + 4
    assert pipe.stream.dropped == 0


def test_end_waits_for_the_last_lines_but_not_for_ever(pipe: Pipe) -> None:
    pipe.stream.write("without an end of line")
    pipe.stream.drain()
    assert os.read(pipe.reader, 100) == b"without an end of line\n"
    pipe.stream.write(LINE * 500)
    begun = time.monotonic()
    pipe.stream.drain(0.2)
    assert 0.2 <= time.monotonic() - begun < 1.0


#: A process that says something in every way there is, and ends with a traceback.
EVERYTHING = """
import logging, sys, threading, warnings
import structlog
from ipvs_proxy.agent.observe.logs import configure, never_wait
never_wait()
configure(0, "json")
structlog.get_logger().info("structlog")
logging.getLogger("x").error("logging")
warnings.warn("warnings")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
sys.stderr.write("plain\\n")
raise RuntimeError("the end")
"""


def test_whatever_writes_to_standard_error_arrives_also_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[0])["event"] == "structlog"
    found = [done.stderr.index(text) for text in ("logging\n", "warnings", "ZeroDivisionError", "plain\n", "the end")]
    assert found == sorted(found)
    assert done.stderr.endswith("RuntimeError: the end\n")


#: An event loop that logs all the time, tells that it lives in a file, and ends with SIGTERM as the agent does.
BUSY = """
import asyncio, os, signal, sys
from pathlib import Path
import structlog
from ipvs_proxy.agent.observe.logs import configure, never_wait
from ipvs_proxy.agent.observe.standard_error import dropped_lines
never_wait()
configure(4, "json")
log = structlog.get_logger()

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    while not stop.is_set():
        for _ in range(100):
            log.warning("chatter", text="x" * 200)
        Path(sys.argv[1]).write_text(str(dropped_lines()))
        await asyncio.sleep(0.001)
    log.info("stopped")

asyncio.run(main())
"""


def dropped(file: Path) -> int:
    return int(file.read_text() or 0) if file.exists() else 0


def test_log_collector_that_is_stuck_holds_up_neither_the_work_nor_the_end(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    with subprocess.Popen([sys.executable, "-c", BUSY, str(alive)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 30
        while dropped(alive) < 1_000:
            assert time.monotonic() < deadline, "the process stands still"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_log_collector_that_reads_again_is_told_how_much_it_has_missed(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    with subprocess.Popen([sys.executable, "-c", BUSY, str(alive)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 30
        while not dropped(alive):
            assert time.monotonic() < deadline, "the process stands still"
            time.sleep(0.02)
        told = (event for line in process.stderr if (event := json.loads(line))["event"] == "log_lines_dropped")
        assert next(told)["lines"] > 0
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stderr.read().splitlines()[-1])["event"] == "stopped"
        assert process.wait(5) == 0


#: A process without standard error, which logs, opens a file, and tells on standard output which descriptor it got.
CLOSED = """
import os, sys
import structlog
from ipvs_proxy.agent.observe.logs import configure, end_of_log, never_wait
never_wait()
configure(0, "auto")
structlog.get_logger().info("to nobody")
print(os.open("/dev/null", os.O_RDONLY), flush=True)
end_of_log()
"""


@pytest.mark.parametrize("closing", ["2>&-", "0<&- 2>&-"])
def test_without_a_standard_error_nothing_is_logged_and_no_other_file_takes_its_place(closing: str) -> None:
    closed = ["sh", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, CLOSED]
    done = subprocess.run(closed, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) > 2
