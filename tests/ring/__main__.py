"""Runs the kernel ring in the kernel that ``lab.machine`` chooses.

    python -m tests.ring                     the whole ring, in several guests beside each other
    python -m tests.ring [PYTEST ARGUMENT ...]   some of it, in one guest: -k drift, tests/ring/test_drains.py, -x

The whole ring is divided by files: each guest has all tests and takes the next file that no other has taken
(``tests/ring/sharing.py``). At the end every test must have run exactly once, whatever happened to a guest, and
``docs/compatibility.md`` must agree with the results.

One more guest runs the files of ``BOTH`` with nftables; the native kernel then has neither iptables nor ipset, and the
emulated machine has two processors, to find what only happens when the kernel does two things at a time.
``RING_PACKET_FILTER=nftables`` has some of the ring run there.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from lab.machine import CHECKOUT, Machine, choose, running
from lab.native import Guest, scratch_directory
from lab.packet_filter import NFTABLES
from tools.compatibility import RESULTS, WITH_NFTABLES

#: Sockets of removed namespaces are closed by the garbage collector, and pytest would blame a later test.
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:unraisableexception")
#: Native guests wait as much as they work; the emulator keeps a processor busy for each.
GUESTS_PER_PROCESSOR = {"native": 2, "stock": 1}
COMPATIBILITY = "tests/ring/test_compatibility.py"
#: What must hold for either packet filter, and what is about this one alone.
BOTH = tuple(
    f"tests/ring/test_{name}.py"
    for name in (
        "without_iptables",
        "kernel_nftables",
        "beside_other_tables",
        "choice",
        "privileges",
        "image",
        "lifecycle",
        "kinds",
        "every_address",
        "one_way",
        "traffic",
        "firewall",
        "marks_of_others",
        "routes",
        "shared_addresses",
        "drains",
        "work",
    )
)
#: What pytest prints of a file, or the machine of itself.
_NEWS = re.compile(r"^(tests/ring/\S+ \S+|lab: .*)")
#: What pytest prints of the session, and of the rest of a file on further lines.
_UNREMARKABLE = re.compile(
    r"^([.sFE]*\s+\[ *\d+%\]|=+ test session|platform |rootdir|configfile|plugins|asyncio|timeout|collect|$)"
)
_print = threading.Lock()


def main() -> None:
    """Run what the arguments ask for and exit with pytest's status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = choose()
    say(str(machine))
    if machine.kind == "stock":
        compile_tests()
    try:
        status = run_some(machine, sys.argv[1:]) if sys.argv[1:] else run_all(machine)
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def compile_tests() -> None:
    """Leave byte code of the tests and of what they import beside the sources, as pytest makes it when it collects.

    The emulated machine gets a copy, and compiling it there takes each guest half a minute.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [*PYTEST, "--collect-only", "-q", "tests/ring"]
    subprocess.run(command, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL, check=False)


def run_some(machine: Machine, arguments: Sequence[str]) -> int:
    """Run pytest with these arguments in one guest; return its status."""
    paths = [] if any(word.startswith("tests/") for word in arguments) else ["tests/ring"]
    with running(machine, [*PYTEST, *arguments, *paths]) as guest:
        return guest.wait()


def run_all(machine: Machine) -> int:
    """Run the whole ring; return 0 if every test has run and passed."""
    began = time.monotonic()
    processors = len(os.sched_getaffinity(0))
    count = int(os.environ.get("RING_GUESTS", processors * GUESTS_PER_PROCESSOR.get(machine.kind, 0) or 1))
    with ExitStack() as stack:
        shared, other = (stack.enter_context(scratch_directory()) for _ in range(2))
        guests = [
            begin(stack, machine, number, shared, [f"--ignore={COMPATIBILITY}", "tests/ring"])
            for number in range(count)
        ]
        # Two processors take 1.5 times the time of one for the same work.
        nftables = {"RING_PACKET_FILTER": NFTABLES}
        guests.append(begin(stack, machine, count, other, BOTH, environment=nftables, processors=2))
        statuses = [guest.wait() for guest, _ in guests]
        for _, thread in guests:
            thread.join()
        results, problems = gather(shared, range(count))
        more, more_problems = gather(other, range(count, count + 1))
        results |= {f"{WITH_NFTABLES}{test}": outcome for test, outcome in more.items()}
        problems += more_problems
        statuses.append(compare_with_the_document(machine, results, problems))
    counts = Counter(results.values())
    for problem in problems:
        say(f"ring: {problem}")
    failed = sum(count for outcome, count in counts.items() if outcome not in {"passed", "skipped"}) + len(problems)
    say(f"ring: the whole of it in {time.monotonic() - began:.0f} s with {len(guests)} guests")
    say(f"ring: {counts['passed']} passed, {failed} failed, {counts['skipped']} skipped")
    return 1 if failed or counts["skipped"] or not counts["passed"] or any(statuses) else 0


def begin(
    stack: ExitStack,
    machine: Machine,
    number: int,
    shared: Path,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    processors: int = 1,
) -> tuple[Guest, threading.Thread]:
    """Start a guest that runs pytest with these arguments, and what follows its output."""
    told = {"REQUIRE_RING": "1", "RING_SHARED": str(shared), "RING_GUEST": str(number)} | (environment or {})
    guest = stack.enter_context(
        running(
            machine,
            [*PYTEST, *arguments],
            environment=told,
            shared=shared,
            processors=processors,
            output=subprocess.PIPE,
        )
    )
    thread = threading.Thread(target=follow, args=(guest, number), daemon=True)
    thread.start()
    return guest, thread


def follow(guest: Guest, number: int) -> None:
    """Print a guest's lines about files and itself as they come; the rest, such as tracebacks, as one at its end."""
    rest: list[str] = []
    assert guest.process.stdout is not None
    for raw in guest.process.stdout:
        line = raw.decode(errors="replace").rstrip()
        if not rest and (news := _NEWS.match(line)):
            say(news[1])
        elif rest or not _UNREMARKABLE.match(line):
            rest.append(line)
    say("\n".join([f"--- guest {number + 1}", *rest]))


def gather(shared: Path, guests: Iterable[int]) -> tuple[dict[str, str], list[str]]:
    """Return the outcome of each test by its id, and what is wrong with the run as a whole."""
    results: dict[str, str] = {}
    problems = []
    collected: set[str] = set()
    for number in guests:
        file = shared / f"results-{number}.json"
        if not file.exists():
            problems.append(f"guest {number + 1} ended before its tests did")
            continue
        told = json.loads(file.read_text())
        collected |= set(told["collected"])
        problems += [f"{test} ran twice" for test in told["results"].keys() & results.keys()]
        results |= told["results"]
    problems += [f"{test} did not run" for test in sorted(collected - results.keys())]
    return results, problems


def compare_with_the_document(machine: Machine, results: dict[str, str], problems: Sequence[str]) -> int:
    """Compare docs/compatibility.md with the results; return pytest's status and add its test to the results.

    The results stay for ``python -m tools compatibility``. The document is written from those of the native kernel: only
    that one runs the tests that need a kernel without iptables.
    """
    if problems:
        return 1
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results))
    command = [*PYTEST, "-q", COMPATIBILITY]
    status = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | {"RING_IS_DONE": machine.kind}, check=False
    ).returncode
    results[COMPATIBILITY] = "failed" if status else "passed"
    return status


def say(text: str) -> None:
    """Print for somebody who watches."""
    with _print:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
