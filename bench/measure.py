"""Measures in a kernel with IPVS, as root: ``python -m bench.measure SERVICES ENDPOINTS`` prints one line of JSON.

Every run has a network namespace of its own (a kernel keeps deleted real servers on a list that slows later adds down).
All figures are seconds unless their name says otherwise.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from bench import cluster, installed
from bench.rig import KernelTime, Rig, WithoutRules, percentile
from ipvs_proxy.agent.tuning import START_GC_THRESHOLD
from ipvs_proxy.kernel.ipvs.table import Ipvs
from ipvs_proxy.plan.addresses import parse_address
from ipvs_proxy.plan.tables import (
    ACTIVE,
    Protocol,
    RealServerKey,
    RealServerOperation,
    Verb,
    VirtualServer,
    VirtualServerKey,
    VirtualServerOperation,
)
from lab.certificates import make_authority
from lab.namespaces import MOUNT, NETWORK, unshare

T = TypeVar("T")
API_PORT, METRICS_PORT = 18080, 10249
#: The longest that an agent may take to start, in seconds.
PATIENCE = 1800
IDLE = 90.0
AUDIT = 30.0
CHANGES = 200


def main() -> None:
    """Measure one size."""
    services, endpoints = map(int, sys.argv[1:3])
    whole = "--quick" not in sys.argv
    found: dict[str, Any] = {"services": services, "endpoints": endpoints, "kernel": os.uname().release}
    found["ipvsadm"] = inside(lambda: restore(services, endpoints))
    found["c_program"] = inside(lambda: fill_by_c(services, endpoints))
    found |= inside(lambda: fill(services, endpoints))
    found |= inside(lambda: agent(services, endpoints, idle=whole))
    found |= inside(lambda: agent_with_tls(services, endpoints))
    found |= inside(lambda: asyncio.run(changes(services, endpoints)))
    sys.stdout.write(json.dumps(found) + "\n")


def inside(measure: Callable[[], T]) -> T:
    """Measure in a child process in new network and mount namespaces, with ``lo`` up; return its result."""
    with tempfile.TemporaryFile("w+") as answer:
        child = os.fork()
        if not child:
            status = 1
            try:
                unshare(NETWORK | MOUNT)
                subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
                json.dump(measure(), answer)
                answer.flush()
                status = 0
            except Exception:  # noqa: BLE001  the child ends here, and says why
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit("a measurement failed, see above")
        answer.seek(0)
        return json.load(answer)  # type: ignore[no-any-return]


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def restore(services: int, endpoints: int) -> float:
    """Fill the table with ``ipvsadm -R``."""
    lines = "".join(cluster.restore_lines(services, endpoints))
    seconds = timed(lambda: subprocess.run(["ipvsadm", "-R"], input=lines, text=True, check=True))
    require(services, endpoints)
    return seconds


def fill_by_c(services: int, endpoints: int) -> float:
    """Fill the table with the C program, which times itself."""
    command = [str(Path(__file__).with_name("fill")), str(services), str(endpoints)]
    seconds = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    require(services, endpoints)
    return seconds


def fill(services: int, endpoints: int) -> dict[str, float]:
    """Fill the table from planned operations in memory, and read it back."""
    operations: list[Any] = []
    table: dict[VirtualServerKey, VirtualServer] = {}
    for index in range(services):
        key = VirtualServerKey(packed(cluster.vip_of(index)), Protocol.TCP, cluster.PORT)
        servers = {RealServerKey(packed(pod), cluster.TARGET_PORT): ACTIVE for pod in cluster.pods_of(index, endpoints)}
        table[key] = VirtualServer(key, "rr", real_servers=servers)
        operations.append(VirtualServerOperation(Verb.ADD, table[key]))
        operations += [RealServerOperation(Verb.ADD, key, server, ACTIVE) for server in servers]
    ipvs = Ipvs()
    # As in the agent while it starts.
    gc.collect()
    gc.set_threshold(START_GC_THRESHOLD)
    with KernelTime() as kernel:
        seconds = timed(lambda: require_zero(ipvs.apply(operations)))
    require(services, endpoints)
    return {"fill": seconds, "fill_kernel": kernel.seconds, "read": timed(ipvs.read)}


def packed(text: str) -> bytes:
    """Pack an address."""
    address = parse_address(text)
    assert address is not None
    return address


def require_zero(results: list[int]) -> None:
    """Fail if an operation failed."""
    assert not any(results), "the kernel refused operations"


def require(services: int, endpoints: int) -> None:
    """Fail if the table is not complete according to ipvsadm."""
    lines = subprocess.run(["ipvsadm", "-Sn"], capture_output=True, text=True, check=True).stdout
    assert lines.count("\n-a ") == services * endpoints, "the table is not complete"


def agent(services: int, endpoints: int, *, idle: bool) -> dict[str, Any]:
    """Start the agent with an API server on the loopback, let it idle, and start it again."""
    with tempfile.TemporaryDirectory() as directory, api_server(services, endpoints, Path(directory)) as config:
        installed.mount()
        with process(config) as first:
            found: dict[str, Any] = {
                "agent": first.interpreter,
                "cold_start": first.seconds,
                "cold_start_objects_known": first.events["started"]["seconds"],
                "first_programmed": first.events["first_programmed"]["milliseconds"] / 1000,
                "kernel_writes": first.events["started"]["kernel_writes"],
                "resident_mib": first.memory("VmRSS"),
                "peak_mib": first.memory("VmHWM"),
            }
            require(services, endpoints)
            if idle:
                found |= first.idle()
        with process(config) as again:
            found |= {
                "restart": again.seconds,
                "restart_objects_known": again.events["started"]["seconds"],
                "restart_writes": again.events["started"]["kernel_writes"],
            }
    return found


def agent_with_tls(services: int, endpoints: int) -> dict[str, float]:
    """Start the agent with an API server that speaks TLS."""
    with (
        tempfile.TemporaryDirectory() as directory,
        api_server(services, endpoints, Path(directory), tls=True) as config,
    ):
        installed.mount()
        with process(config) as started:
            require(services, endpoints)
            return {"tls_cold_start": started.seconds, "tls_cold_start_processor": started.processor_seconds()}


KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: bench, cluster: {{{cluster}}}}}]
users: [{{name: bench, user: {{}}}}]
contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]
current-context: bench
"""


@contextmanager
def api_server(services: int, endpoints: int, directory: Path, *, tls: bool = False) -> Iterator[Path]:
    """Run an API server until the end; yield the kubeconfig that leads to it."""
    command = [sys.executable, "-m", "bench.api_server", str(API_PORT), str(services), str(endpoints)]
    where = f'server: "http://127.0.0.1:{API_PORT}"'
    if tls:
        authority = make_authority(directory, "api")
        command += [str(directory / "api-leaf.crt"), str(directory / "api-leaf.key")]
        where = f'server: "https://127.0.0.1:{API_PORT}", certificate-authority: "{authority}"'
    config = directory / "kubeconfig"
    config.write_text(KUBECONFIG.format(cluster=where))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield config
        finally:
            server.terminate()


class Process:
    """A running agent: what it logged, and the seconds until it had started."""

    def __init__(self, process: subprocess.Popen[str], begun: float) -> None:
        self._process = process
        self.events: dict[str, dict[str, Any]] = {}
        assert process.stderr is not None
        printed = []
        for line in process.stderr:
            printed.append(line)
            if line.startswith("{"):
                event = json.loads(line)
                self.events.setdefault(event["event"], event)
            if "started" in self.events:
                break
            assert time.monotonic() - begun < PATIENCE
        assert "started" in self.events, "the agent did not start:\n" + "".join(printed)
        self.seconds = time.monotonic() - begun
        self.interpreter = installed.interpreter(process.pid)

    def memory(self, name: str) -> float:
        """Return a size from the kernel's account of the process, in MiB."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        (kibibytes,) = re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
        return round(int(kibibytes) / 1024, 1)

    def processor_seconds(self) -> float:
        """Return the processor time used so far by the agent and the programs that it ran."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def idle(self) -> dict[str, float]:
        """Let it idle over some audits."""
        delays = loop_delays(scrape())
        before = self.processor_seconds()
        time.sleep(IDLE)
        used = (self.processor_seconds() - before) / IDLE
        begun = time.perf_counter()
        text = scrape()
        seconds = time.perf_counter() - begun
        longest = max(bound for bound, count in loop_delays(text).items() if count > delays[bound])
        return {"idle": used, "scrape": seconds, "loop_delay": longest}


def scrape() -> str:
    """Get the agent's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics") as response:
        return str(response.read().decode())


def loop_delays(text: str) -> dict[float, float]:
    """Return the number of delays of the event loop in each bucket, by its upper bound in seconds."""
    counts: dict[float, float] = {}
    below = 0.0
    for bound, count in re.findall(
        r'^ipvs_proxy_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\S+)', text, re.MULTILINE
    ):
        counts[float(bound)], below = float(count) - below, float(count)
    return counts


@contextmanager
def process(config: Path) -> Iterator[Process]:
    """Start an agent and wait until it has programmed everything; stop it at the end."""
    arguments = [
        *("--kubeconfig", str(config), "--hostname-override", cluster.NODE),
        *("--cluster-cidr", "10.128.0.0/9", "--logging-format", "json", "--ipvs-sync-period", f"{AUDIT:.0f}s"),
        *("--healthz-bind-address", "127.0.0.1:10256", "--metrics-bind-address", f"127.0.0.1:{METRICS_PORT}"),
    ]
    begun = time.monotonic()
    with installed.start(arguments) as started:
        try:
            yield Process(started, begun)
        finally:
            started.terminate()
            assert started.stderr is not None
            started.stderr.read()


async def changes(services: int, endpoints: int) -> dict[str, Any]:
    """Add an endpoint to one Service after another; return seconds and messages of each."""
    kernel = WithoutRules()
    rig = Rig(cluster.objects(services, endpoints), kernel)
    seconds, messages = [], set()
    async with rig.running():
        for number in range(CHANGES):
            index = 2 + number % (services - 2)
            pods = [*cluster.pods_of(index, endpoints), f"10.200.{number // 250}.{number % 250 + 1}"]
            before = kernel.writes()
            seconds.append(await rig.change(cluster.endpoint_slice(index, 0, pods, version=2 + number)))
            messages.add(kernel.writes() - before)
    return {
        "change_median": percentile(seconds, 0.5),
        "change_p99": percentile(seconds, 0.99),
        "change_messages": max(messages),
    }


if __name__ == "__main__":
    main()
