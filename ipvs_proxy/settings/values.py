"""The kinds of values that settings have: how each is written in a flag and in a file, and what is read from it.

Invariant: whatever a kind is given, ``read`` returns a value of the kind's type or raises a ValueError whose text an
operator understands. What comes from a command line or a YAML file is ``object`` until a kind has read it. The readers
below take the text of a flag and what a file holds alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from ipvs_proxy.kube.texts import control_character, quote
from ipvs_proxy.plan.durations import duration, duration_text
from ipvs_proxy.plan.masquerading import interface
from ipvs_proxy.plan.node_addresses import PRIMARY, NodePortAddresses

Network = IPv4Network | IPv6Network
#: Covariant, so that a table can hold kinds of every type: ``show`` is only given what the same kind has read.
T_co = TypeVar("T_co", covariant=True)

_NETWORK: Final = re.compile(r"[0-9a-fA-F.:]+/\d{1,3}", re.ASCII)
#: The words of ``nodePortAddresses`` that stand for CIDRs (pkg/proxy/apis/config of Kubernetes 1.37).
_WORDS: Final = {"all": ["0.0.0.0/0", "::/0"], "localhost": ["127.0.0.0/8", "::1/128"]}
#: Names that people use for schedulers, and the kernel's name for each.
_SCHEDULERS: Final = {
    "roundrobin": "rr",
    "weightedroundrobin": "wrr",
    "leastconnection": "lc",
    "leastconnections": "lc",
    "leastconn": "lc",
    "weightedleastconnection": "wlc",
    "weightedleastconnections": "wlc",
    "sourcehash": "sh",
    "sourcehashing": "sh",
    "destinationhashing": "dh",
    "maglevhashing": "mh",
    "maglev": "mh",
    "shortestexpecteddelay": "sed",
    "neverqueue": "nq",
}
#: Bytes of a scheduler's name without its NUL (``IP_VS_SCHEDNAME_MAXLEN`` in linux/ip_vs.h is 16).
_LONGEST_SCHEDULER: Final = 15
#: Kubernetes documentation, "Labels and Selectors": what a label may have as its value.
_LABEL_VALUE: Final = re.compile(r"[a-z0-9A-Z]([-a-z0-9A-Z_.]*[a-z0-9A-Z])?")
_LONGEST_LABEL_VALUE: Final = 63
_TYPES: Final = {
    dict: "a mapping",
    list: "a list",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """One kind of value: its name in ``--help``, how it is read, and its type in a file.

    ``read`` takes the text of a flag (a tuple of texts if the flag is ``repeatable``, as Go's lists are) or what a file
    holds. ``show`` turns a value that ``read`` returned into what a file holds. ``in_file`` is the type that a value
    must have in a file; ``object`` stands for any.
    """

    name: str
    read: Callable[[object], T_co]
    in_file: type[object] = str
    repeatable: bool = False
    show: Callable[[T_co], object] = str

    def read_from_file(self, value: object) -> T_co:
        """Return the value that a file's content stands for.

        Raises:
            ValueError: it has another type than ``in_file``, which kube-proxy's decoder refuses too, or cannot be read.

        """
        refuse_control_characters(value)
        if self.in_file is not object and type(value) is not self.in_file:
            raise ValueError(f"must be {_TYPES[self.in_file]}, not {type_of(value)}")
        if self.in_file is list and isinstance(value, list):
            for index, element in enumerate(value):
                if type(element) is not str:
                    raise ValueError(f"element {index} must be text, not {type_of(element)}")
        return self.read(value)


def refuse_control_characters(value: object) -> None:
    """Raise ValueError if a text anywhere in a value has a control character.

    A NUL ends a name for iptables and the kernel, which then means more than was written; a line end begins a rule.
    """
    if isinstance(value, str):
        if found := control_character(value):
            raise ValueError(f"has the control character {found}, which no setting may have")
    elif isinstance(value, dict):
        for pair in value.items():
            refuse_control_characters(pair)
    elif isinstance(value, list | tuple):
        for element in value:
            refuse_control_characters(element)


def type_of(value: object) -> str:
    """Return the name of a value's type in words."""
    return _TYPES.get(type(value), type(value).__name__)


def networks(value: object) -> tuple[Network, ...]:
    """Read CIDRs: a list of texts, each of which may have commas, or one such text."""
    return tuple(_network(part) for text in _elements(value) for part in text.split(",") if part)


def _elements(value: object) -> list[str]:
    return [str(element) for element in value] if isinstance(value, list | tuple) else [str(value)]


def _network(text: str) -> Network:
    # A bare address would be a network of one address, and all pods would be outside it.
    if not _NETWORK.fullmatch(text):
        raise ValueError(f"{text!r} is not a CIDR such as 10.244.0.0/16")
    return ip_network(text, strict=False)


def cluster_networks(value: object) -> tuple[Network, ...]:
    """Read ``clusterCIDR``: one CIDR, or one of each family."""
    found = networks(value)
    if len({network.version for network in found}) != len(found):
        raise ValueError(f"{value!r} has two CIDRs of one family; give one, or one of each family")
    return found


def whole_number(low: int, high: int) -> Callable[[object], int]:
    """Return a reader of integers from ``low`` to ``high``."""

    def read(value: object) -> int:
        text = str(value)
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            raise ValueError(f"{text!r} is not a whole number")
        if not low <= int(text) <= high:
            raise ValueError(f"{text} is not between {low} and {high}")
        return int(text)

    return read


def switch(value: object) -> bool:
    """Read a boolean, also in the short forms that Go takes."""
    word = str(value).lower()
    if word in {"true", "t", "1"}:
        return True
    if word in {"false", "f", "0"}:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def bind_address(port: int) -> Callable[[object], str]:
    """Return a reader of ``IP`` or ``IP:port``; ``port`` is for an address without one."""

    def read(value: object) -> str:
        text = str(value)
        host, _, number = text.rpartition(":")
        if not host or (text.count(":") > 1 and not text.startswith("[")):
            host, number = text, str(port)
        host = host.removeprefix("[").removesuffix("]")
        if not _is_address(host):
            head, _, tail = text.rpartition(":")
            meant = f": write [{head}]:{tail}" if ":" in head and _is_address(head) else ""
            raise ValueError(
                f"{text!r} is neither an IP address nor one with a port, such as 127.0.0.1:80 and [::1]:80{meant}"
            )
        if not re.fullmatch(r"[0-9]{1,5}", number) or not 1 <= int(number) <= 65535:
            raise ValueError(f"{number!r} is not a port, which is a number from 1 to 65535")
        return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"

    return read


def any_address(value: object) -> str:
    """Read an IP address."""
    if not _is_address(str(value)):
        raise ValueError(f"{value!r} is not an IP address")
    return str(ip_address(str(value)))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def one_of(*choices: str) -> Callable[[object], str]:
    """Return a reader of one of some words."""

    def read(value: object) -> str:
        text = str(value)
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choice for choice in choices if choice)}")
        return text

    return read


def directory(value: object) -> Path | None:
    """Read a path; ``None`` if it is empty."""
    return Path(str(value)) if value else None


def node_port_addresses(value: object) -> NodePortAddresses:
    """Read CIDRs and the words ``primary``, ``all`` and ``localhost`` in any mix, as kube-proxy does from 1.37 on."""
    words = [part.strip() for text in _elements(value) for part in text.split(",")]
    if words == [PRIMARY]:
        return PRIMARY
    found: list[Network | Literal["primary"]] = []
    for word in filter(None, words):
        if word == PRIMARY:
            found.append(PRIMARY)
        else:
            found += networks(_WORDS.get(word, word))
    return tuple(dict.fromkeys(found))


def interface_name(value: object) -> str:
    """Read the name of a network interface; it may be empty."""
    return interface(str(value)).name if value else ""


def interface_prefix(value: object) -> str:
    """Read the beginning of the names of network interfaces; it may be empty."""
    return interface(str(value), is_prefix=True).name if value else ""


def label_value(value: object) -> str:
    """Read the value of a label, as the API server validates it; it may be empty."""
    text = str(value)
    if text and (len(text) > _LONGEST_LABEL_VALUE or not _LABEL_VALUE.fullmatch(text)):
        raise ValueError(
            f"{quote(text)!r} is not the value of a label: at most 63 letters, digits, -, _ and ., with a letter or "
            "digit at both ends"
        )
    return text


def scheduler(value: object) -> str:
    """Read the kernel's name of a scheduler; only the kernel knows whether there is one of that name."""
    text = str(value)
    known = _SCHEDULERS.get(text.replace("-", "").replace("_", "").replace(" ", "").lower())
    if known is None and text.lower() in _SCHEDULERS.values() and text != text.lower():
        known = text.lower()
    if known is not None:
        raise ValueError(f"{text!r} is not the kernel's name of a scheduler; it calls this one {known}")
    if len(text.encode()) > _LONGEST_SCHEDULER:
        raise ValueError(f"{quote(text)!r} is longer than the name of a scheduler may be")
    return text


def compatibility(value: object) -> bool:
    """Read ``kube-proxy``, or nothing; return whether to behave as kube-proxy does."""
    if value not in {"", "kube-proxy"}:
        raise ValueError(f"{value!r} is not kube-proxy")
    return bool(value)


class ServiceMetrics(StrEnum):
    """Whose traffic is exposed: nobody's, that of all Services, or that of the busiest endpoints as well."""

    OFF = "off"
    ALL = "all"
    ENDPOINTS = "endpoints"


def service_metrics(value: object) -> ServiceMetrics:
    """Read whose traffic is exposed."""
    return ServiceMetrics(one_of(*ServiceMetrics)(value))


def number(value: object) -> float:
    """Read a finite number that is not negative."""
    try:
        found = float(str(value))
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise ValueError(f"{value!r} is not a number of 0 or more")
    return found


def gates(value: object) -> dict[str, bool]:
    """Read feature gates: a mapping, or ``A=true,B=false``."""
    pairs = value.items() if isinstance(value, dict) else [part.partition("=")[::2] for part in str(value).split(",")]
    return {str(name).strip(): switch(state) for name, state in pairs if name}


def anything(value: object) -> object:
    """Return what comes as it is."""
    return value


def integer_kind(name: str, low: int, high: int) -> Kind[int]:
    """Return the kind of integers from ``low`` to ``high``."""
    return Kind(name, whole_number(low, high), int, show=int)


def _show_all(elements: str | Iterable[object]) -> list[str] | None:
    if isinstance(elements, str):
        return [elements]
    return [str(element) for element in elements] or None


def _show_number(found: float) -> float:
    return int(found) if found == int(found) else found


TEXT: Final = Kind("TEXT", str)
DURATION: Final = Kind("DURATION", duration, show=duration_text)
SWITCH: Final = Kind("[true|false]", switch, bool, show=bool)
COUNT: Final = integer_kind("NUMBER", 0, 2**31 - 1)
NUMBER: Final = Kind("NUMBER", number, object, show=_show_number)
NETWORKS: Final = Kind("CIDR,...", networks, list, repeatable=True, show=_show_all)
CLUSTER_NETWORKS: Final = Kind("CIDR[,CIDR]", cluster_networks, show=lambda found: ",".join(map(str, found)))
NODE_PORT_ADDRESSES: Final = Kind("CIDR|primary|all,...", node_port_addresses, list, repeatable=True, show=_show_all)
INTERFACE: Final = Kind("NAME", interface_name)
INTERFACE_PREFIX: Final = Kind("NAME", interface_prefix)
LABEL_VALUE: Final = Kind("LABEL", label_value)
SCHEDULER: Final = Kind("NAME", scheduler)
ADDRESS: Final = Kind("IP", any_address)
DIRECTORY: Final = Kind("DIRECTORY", directory, show=lambda path: str(path or ""))
COMPATIBILITY: Final = Kind("kube-proxy", compatibility, show=lambda compatible: "kube-proxy" if compatible else "")
SERVICE_METRICS: Final = Kind("|".join(ServiceMetrics), service_metrics, show=str)
GATES: Final = Kind("GATE=true|false,...", gates, dict, show=dict)
ANYTHING: Final = Kind("TEXT", anything, object, show=lambda value: value or None)
