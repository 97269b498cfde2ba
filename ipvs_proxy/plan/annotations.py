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


class ServiceOptions(NamedTuple):
    """What a Service asks for by annotation; ``None`` stands for what it does not say.

    ``drain_timeout`` is how long its removed endpoints keep their connections, in seconds; infinite without a limit.
    """

    drain_timeout: float | None = None


class Annotation(NamedTuple):
    """An annotation: its name, the field of ``ServiceOptions`` that it sets, and how its value is read and written.

    ``read`` raises ``ValueError`` for a value that it cannot read, which is left out with the reason ``unreadable``.
    """

    name: str
    field: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    unreadable: Reason


def _read_drain_timeout(text: str) -> float:
    return math.inf if text.strip() == "unlimited" else duration(text)


def _write_drain_timeout(seconds: float) -> str:
    return "unlimited" if seconds == math.inf else duration_text(seconds)


#: ``5m``, ``0s`` or ``unlimited``.
DRAIN_TIMEOUT: Final = "ipvs-proxy.io/drain-timeout"

ANNOTATIONS: Final = (
    Annotation(DRAIN_TIMEOUT, "drain_timeout", _read_drain_timeout, _write_drain_timeout, Reason.INVALID_DRAIN_TIMEOUT),
)

_NO_OPTIONS: Final = ServiceOptions()


def read_options(service: Service, omissions: list[Omission]) -> ServiceOptions:
    """Return what the annotations of a Service ask for; what cannot be read becomes an omission."""
    written = service.metadata.annotations
    if not written:
        return _NO_OPTIONS
    found: dict[str, Any] = {}
    for annotation in ANNOTATIONS:
        text = written.get(annotation.name)
        if text is None:
            continue
        try:
            found[annotation.field] = annotation.read(text)
        except ValueError:
            where = f"service {service.metadata.namespace}/{service.metadata.name} annotation {annotation.name} {text}"
            omissions.append(Omission(where, annotation.unreadable))
    return ServiceOptions(**found) if found else _NO_OPTIONS


def option_texts(options: ServiceOptions) -> dict[str, str]:
    """Return what a Service asks for as text: the value of each annotation that it has, in its usual form."""
    values = [(annotation, getattr(options, annotation.field)) for annotation in ANNOTATIONS]
    return {annotation.name: annotation.write(value) for annotation, value in values if value is not None}
