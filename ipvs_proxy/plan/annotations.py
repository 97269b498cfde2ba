"""What the annotations of a Service ask for: a table with a row for each.

A new annotation is a row in ``ANNOTATIONS`` and a field of ``ServiceOptions``, with a ``Reason`` for values that cannot
be read. The options of a Service reach everything that plans it in ``Fragment.options``, as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ipvs_proxy.kube.objects import Service
from ipvs_proxy.plan.durations import duration, duration_text
from ipvs_proxy.plan.endpoints import Omission
from ipvs_proxy.plan.reasons import Reason
from ipvs_proxy.plan.weights import MAX_CONNECTIONS, Weights, read_number, read_weights, write_weights

#: The schedulers of Linux (net/netfilter/ipvs/ip_vs_*.c). Others are refused: for whatever name it is asked for, the
#: kernel loads a module ``ip_vs_NAME``, and any tenant may write an annotation.
SCHEDULERS: Final = frozenset(
    ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos")
)
_FLAGS: Final = frozenset(("sh-fallback", "sh-port", "mh-fallback", "mh-port"))
#: The longest slow start, in seconds.
_LONGEST_START: Final = 3600.0


class ServiceOptions(NamedTuple):
    """What a Service asks for by annotation; ``None`` stands for what it does not say.

    ``drain_timeout`` is how long its removed endpoints keep their connections, in seconds; infinite without a limit.
    ``slow_start`` is how long an endpoint that has become ready takes to its full weight, in seconds. ``one_packet``
    has the kernel schedule every packet of UDP by itself. ``max_connections`` is how many connections an endpoint gets
    from this node. Once it has them, it gets none until it has fewer than ``min_connections``, or than three quarters
    of the most (``ip_vs_unbind_dest`` of the kernel's ip_vs_conn.c). Those that are closed count as long as the
    kernel keeps them: two minutes for TCP.
    """

    drain_timeout: float | None = None
    scheduler: str | None = None
    scheduler_flags: frozenset[str] | None = None
    one_packet: bool | None = None
    max_connections: int | None = None
    min_connections: int | None = None
    weights: Weights | None = None
    slow_start: float | None = None


class Annotation(NamedTuple):
    """An annotation: its name, the field of ``ServiceOptions`` that it sets, and how its value is read and written.

    ``read`` raises ``ValueError`` for a value that it cannot read, which is left out with the reason ``unreadable``.
    ``help`` is a line for the documents, which begins with examples of values.
    """

    name: str
    field: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    unreadable: Reason
    help: str


def _read_drain_timeout(text: str) -> float:
    return math.inf if text.strip() == "unlimited" else duration(text)


def _write_drain_timeout(seconds: float) -> str:
    return "unlimited" if seconds == math.inf else duration_text(seconds)


def _read_scheduler(text: str) -> str:
    if text.strip() not in SCHEDULERS:
        raise ValueError("it is not the name of a scheduler")
    return text.strip()


def _read_flags(text: str) -> frozenset[str]:
    names = frozenset(name.strip() for name in text.split(",", len(_FLAGS))) - {""}
    if not names <= _FLAGS:
        raise ValueError("it has a flag that no scheduler knows")
    return names


def _write_flags(names: frozenset[str]) -> str:
    return ",".join(sorted(names))


def _read_truth(text: str) -> bool:
    if text.strip() not in {"true", "false"}:
        raise ValueError("it is neither true nor false")
    return text.strip() == "true"


def _write_truth(value: bool) -> str:
    return "true" if value else "false"


def _read_connections(text: str) -> int:
    number = read_number(text, at_most=MAX_CONNECTIONS)
    if not number:
        raise ValueError("it is 0, which is no limit")
    return number


def _read_slow_start(text: str) -> float:
    seconds = duration(text)
    if not 1 <= seconds <= _LONGEST_START:
        raise ValueError("it is shorter than 1s or longer than 1h")
    return seconds


DRAIN_TIMEOUT: Final = "ipvs-proxy.io/drain-timeout"
SCHEDULER: Final = "ipvs-proxy.io/scheduler"
SCHEDULER_FLAGS: Final = "ipvs-proxy.io/scheduler-flags"
ONE_PACKET: Final = "ipvs-proxy.io/one-packet"
MAX_CONNECTIONS_OF_ENDPOINT: Final = "ipvs-proxy.io/max-connections"
MIN_CONNECTIONS_OF_ENDPOINT: Final = "ipvs-proxy.io/min-connections"
WEIGHTS: Final = "ipvs-proxy.io/weights"
SLOW_START: Final = "ipvs-proxy.io/slow-start"

ANNOTATIONS: Final = (
    Annotation(
        DRAIN_TIMEOUT,
        "drain_timeout",
        _read_drain_timeout,
        _write_drain_timeout,
        Reason.INVALID_DRAIN_TIMEOUT,
        "`5m`, `0s`, `unlimited`: how long its removed endpoints keep their connections",
    ),
    Annotation(
        SCHEDULER,
        "scheduler",
        _read_scheduler,
        str,
        Reason.INVALID_SCHEDULER,
        "`rr`, `wrr`, `lc`, `wlc`, `lblc`, `lblcr`, `dh`, `sh`, `sed`, `nq`, `fo`, `ovf`, `mh` or "
        "`twos`: the algorithm, in the place of `--ipvs-scheduler`",
    ),
    Annotation(
        SCHEDULER_FLAGS,
        "scheduler_flags",
        _read_flags,
        _write_flags,
        Reason.INVALID_SCHEDULER_FLAGS,
        "`sh-fallback`, `sh-port`, `mh-fallback`, `mh-port`, several with commas between, or nothing: the flags of "
        "`sh` and `mh`, by ipvsadm's names. Without it `mh` has `mh-port`, as with kube-proxy, and both have their "
        "fallback where a Service asks for them, or has weights or limits",
    ),
    Annotation(
        ONE_PACKET,
        "one_packet",
        _read_truth,
        _write_truth,
        Reason.INVALID_ONE_PACKET,
        "`true`: every packet of its UDP ports is scheduled by itself. Not for what is answered",
    ),
    Annotation(
        MAX_CONNECTIONS_OF_ENDPOINT,
        "max_connections",
        _read_connections,
        str,
        Reason.INVALID_CONNECTION_LIMIT,
        "`100`: an endpoint with that many connections from one node gets no new ones from it",
    ),
    Annotation(
        MIN_CONNECTIONS_OF_ENDPOINT,
        "min_connections",
        _read_connections,
        str,
        Reason.INVALID_CONNECTION_LIMIT,
        "`80`: until it is below that many; without it, below three quarters of the most",
    ),
    Annotation(
        WEIGHTS,
        "weights",
        read_weights,
        write_weights,
        Reason.INVALID_WEIGHTS,
        "`node=edge-1:0, zone=eu-1a:3, local:10, *:1`: weights by where an endpoint is, from 0 (no new "
        "connections) to 65535",
    ),
    Annotation(
        SLOW_START,
        "slow_start",
        _read_slow_start,
        duration_text,
        Reason.INVALID_SLOW_START,
        "`30s`, from one second to one hour: a new endpoint gets its weight in ten steps",
    ),
)

_NO_OPTIONS: Final = ServiceOptions()


def read_options(service: Service, omissions: list[Omission]) -> ServiceOptions:
    """Return what the annotations of a Service ask for; what cannot be read becomes an omission."""
    written = service.metadata.annotations
    if not written:
        return _NO_OPTIONS
    name = f"service {service.metadata.namespace}/{service.metadata.name}"
    found: dict[str, Any] = {}
    for annotation in ANNOTATIONS:
        text = written.get(annotation.name)
        if text is None:
            continue
        try:
            found[annotation.field] = annotation.read(text)
        except ValueError:
            omissions.append(Omission(f"{name} annotation {annotation.name} {text}", annotation.unreadable))
    if not found:
        return _NO_OPTIONS
    options = ServiceOptions(**found)
    least, most = options.min_connections, options.max_connections
    # The kernel refuses a lower threshold above the upper one, and without an upper one it means nothing.
    if least is not None and (most is None or least > most):
        where = f"{name} annotation {MIN_CONNECTIONS_OF_ENDPOINT} {least} of at most {most or 'any number'}"
        omissions.append(Omission(where, Reason.INVALID_CONNECTION_LIMIT))
        return options._replace(min_connections=None)
    return options


def option_texts(options: ServiceOptions) -> dict[str, str]:
    """Return what a Service asks for as text: the value of each annotation that it has, in its usual form."""
    values = [(annotation, getattr(options, annotation.field)) for annotation in ANNOTATIONS]
    return {annotation.name: annotation.write(value) for annotation, value in values if value is not None}


def may_be_weighted(options: ServiceOptions) -> bool:
    """Return whether endpoints may get another weight than 1, wherever they are."""
    rules = options.weights
    return options.slow_start is not None or (rules is not None and rules.any_unequal)
