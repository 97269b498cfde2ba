"""The kinds of values that settings have: how each is written in a flag and in a file, and what it means.

A kind promises that whatever it is given becomes a value or a ValueError that an operator understands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, Literal

from ipvs_proxy.kube.texts import control_character, quote
from ipvs_proxy.plan.durations import duration, duration_text
from ipvs_proxy.plan.masquerading import Interface, RuleSettings
from ipvs_proxy.plan.node_addresses import PRIMARY, NodePortAddresses

Network = IPv4Network | IPv6Network

_NETWORK: Final = re.compile(r"[0-9a-fA-F.:]+/\d{1,3}", re.ASCII)
#: The words of ``nodePortAddresses`` that stand for CIDRs (pkg/proxy/apis/config of Kubernetes 1.37).
_WORDS: Final = {"all": ["0.0.0.0/0", "::/0"], "localhost": ["127.0.0.0/8", "::1/128"]}
#: Schedulers by the names that people know them by, and the kernel does not.
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
#: Bytes of a scheduler's name (``IP_VS_SCHEDNAME_MAXLEN`` of linux/ip_vs.h, with the NUL).
_LONGEST_SCHEDULER: Final = 15
_TYPES: Final = {
    dict: "a mapping",
    list: "a list",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value: its name in the help, how it is read, and the type that it has in a file.

    ``read`` takes text, or what the file holds, and raises ValueError; ``show`` turns what it gave into what a file
    holds. A file may hold anything where the type is ``object``. The flag of a ``repeatable`` kind may be given more
    than once, as Go's lists may.
    """

    name: str
    read: Callable[[Any], Any]
    in_file: type[object] = str
    repeatable: bool = False
    show: Callable[[Any], Any] = str

    def read_from_file(self, value: Any) -> Any:
        """Read what a file holds. Raises ValueError if it has another type, as kube-proxy's decoder does."""
        refuse_control_characters(value)
        if self.in_file is not object and type(value) is not self.in_file:
            raise ValueError(f"is {type_of(value)}, wanted {_TYPES[self.in_file]}")
        if isinstance(value, list):
            for index, element in enumerate(value):
                if type(element) is not str:
                    raise ValueError(f"element {index} is {type_of(element)}, wanted text")
        return self.read(value)


def refuse_control_characters(value: Any) -> None:
    """Look through a value. Raises ValueError if a text of it has a control character.

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


def type_of(value: Any) -> str:
    """Name the type of a value of a file."""
    return _TYPES.get(type(value), type(value).__name__)


def duration_or(default: float) -> Callable[[Any], float]:
    """Make a reader of durations where 0 means the default, in seconds."""
    return lambda value: duration(value) or default


def networks(value: Any) -> tuple[Network, ...]:
    """Read CIDRs: a list of texts, each of which may have commas, or one such text."""
    texts = value if isinstance(value, list | tuple) else [value]
    return tuple(_network(part) for text in texts for part in str(text).split(",") if part)


def _network(text: str) -> Network:
    # A bare address would be a network of one, and all pods outside of it.
    if not _NETWORK.fullmatch(text):
        raise ValueError(f"{text!r} is no CIDR such as 10.244.0.0/16")
    return ip_network(text, strict=False)


def cluster_networks(value: Any) -> tuple[Network, ...]:
    """Read ``clusterCIDR``: one CIDR, or one of each family."""
    found = networks(value)
    if len({network.version for network in found}) != len(found):
        raise ValueError(f"{value!r} has two CIDRs of one family; give one, or one for each family")
    return found


def whole_number(low: int, high: int) -> Callable[[Any], int]:
    """Make a reader of integers within bounds."""

    def read(value: Any) -> int:
        text = str(value)
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text):
            raise ValueError(f"{text!r} is no whole number")
        if not low <= int(text) <= high:
            raise ValueError(f"{text} is not between {low} and {high}")
        return int(text)

    return read


def switch(value: Any) -> bool:
    """Read a boolean, also in the short forms that Go takes."""
    word = str(value).lower()
    if word in {"true", "t", "1"}:
        return True
    if word in {"false", "f", "0"}:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def bind_address(port: int) -> Callable[[Any], str]:
    """Make a reader of ``IP`` or ``IP:port``; nothing stays nothing."""

    def read(value: Any) -> str:
        text = str(value)
        if not text:
            return ""
        host, _, number = text.rpartition(":")
        if not host or (text.count(":") > 1 and not text.startswith("[")):
            host, number = text, str(port)
        host = host.removeprefix("[").removesuffix("]")
        if not _is_address(host):
            head, _, tail = text.rpartition(":")
            meant = f": write [{head}]:{tail}" if ":" in head and _is_address(head) else ""
            raise ValueError(
                f"{text!r} is neither an IP address nor one with a port, as 127.0.0.1:80 and [::1]:80 are{meant}"
            )
        if not re.fullmatch(r"[0-9]{1,5}", number) or not 1 <= int(number) <= 65535:
            raise ValueError(f"{number!r} is no port: that is a number from 1 to 65535")
        return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"

    return read


def any_address(value: Any) -> str:
    """Read an IP address."""
    if not _is_address(str(value)):
        raise ValueError(f"{value!r} is no IP address")
    return str(ip_address(str(value)))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def one_of(*choices: str) -> Callable[[Any], str]:
    """Make a reader of one of some words."""

    def read(value: Any) -> str:
        if str(value) not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choice for choice in choices if choice)}")
        return str(value)

    return read


def directory(value: Any) -> Path | None:
    """Read a path; nothing if it is empty."""
    return Path(value) if value else None


def node_port_addresses(value: Any) -> NodePortAddresses:
    """Read CIDRs and the words ``primary``, ``all`` and ``localhost`` in any mix, as kube-proxy does from 1.37 on."""
    texts = value if isinstance(value, list | tuple) else [value]
    words = [part.strip() for text in texts for part in str(text).split(",")]
    if words == [PRIMARY]:
        return PRIMARY
    found: list[Network | Literal["primary"]] = []
    for word in filter(None, words):
        if word == PRIMARY:
            found.append(PRIMARY)
        else:
            found += networks(_WORDS.get(word, word))
    return tuple(dict.fromkeys(found))


def interface(value: Any) -> str:
    """Read the name of a network interface, or the beginning of one."""
    if value:
        RuleSettings(local=Interface(value))
    return str(value)


def scheduler(value: Any) -> str:
    """Read the name of a scheduler as the kernel has it; whether there is one of that name, the kernel knows."""
    text = str(value)
    known = _SCHEDULERS.get(text.replace("-", "").replace("_", "").replace(" ", "").lower())
    if known is None and text.lower() in _SCHEDULERS.values() and text != text.lower():
        known = text.lower()
    if known is not None:
        raise ValueError(f"{text!r} is no name of a scheduler in the kernel, which calls it {known}")
    if len(text.encode()) > _LONGEST_SCHEDULER:
        raise ValueError(f"{quote(text)!r} is longer than the name of a scheduler")
    return text


def compatibility(value: Any) -> bool:
    """Read whose behaviour to have."""
    if value not in {"", "kube-proxy"}:
        raise ValueError(f"{value!r} is not kube-proxy")
    return bool(value)


class ServiceMetrics(StrEnum):
    """Whose traffic is exposed: nobody's, all Services', or besides that of the busiest endpoints."""

    OFF = "off"
    ALL = "all"
    ENDPOINTS = "endpoints"


def service_metrics(value: Any) -> ServiceMetrics:
    """Read whose traffic is exposed."""
    return ServiceMetrics(one_of(*ServiceMetrics)(value))


def number(value: Any) -> float:
    """Read a number that is not negative."""
    try:
        found = float(str(value))
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise ValueError(f"{value!r} is no number of 0 or more")
    return found


def gates(value: Any) -> dict[str, bool]:
    """Read feature gates: a mapping, or ``A=true,B=false``."""
    pairs = value.items() if isinstance(value, dict) else [part.partition("=")[::2] for part in str(value).split(",")]
    return {str(name).strip(): switch(state) for name, state in pairs if name}


def anything(value: Any) -> Any:
    """Take what comes."""
    return value


def duration_kind(read: Callable[[Any], float] = duration) -> Kind:
    """Make a kind of durations."""
    return Kind("DURATION", read, show=duration_text)


def integer_kind(name: str, low: int, high: int) -> Kind:
    """Make a kind of integers within bounds."""
    return Kind(name, whole_number(low, high), int, show=int)


def _show_all(elements: Any) -> list[str] | None:
    if isinstance(elements, str):
        return [elements]
    return [str(element) for element in elements] or None


TEXT: Final = Kind("TEXT", str)
DURATION: Final = duration_kind()
SWITCH: Final = Kind("[true|false]", switch, bool, show=bool)
COUNT: Final = integer_kind("NUMBER", 0, 2**31 - 1)
NUMBER: Final = Kind("NUMBER", number, object, show=lambda found: int(found) if found == int(found) else found)
NETWORKS: Final = Kind("CIDR,...", networks, list, repeatable=True, show=_show_all)
CLUSTER_NETWORKS: Final = Kind("CIDR[,CIDR]", cluster_networks, show=lambda found: ",".join(map(str, found)))
NODE_PORT_ADDRESSES: Final = Kind("CIDR|primary|all,...", node_port_addresses, list, repeatable=True, show=_show_all)
INTERFACE: Final = Kind("NAME", interface)
SCHEDULER: Final = Kind("NAME", scheduler)
ADDRESS: Final = Kind("IP", any_address)
DIRECTORY: Final = Kind("DIRECTORY", directory, show=lambda path: str(path or ""))
COMPATIBILITY: Final = Kind("kube-proxy", compatibility, show=lambda compatible: "kube-proxy" if compatible else "")
SERVICE_METRICS: Final = Kind("|".join(ServiceMetrics), service_metrics, show=str)
GATES: Final = Kind("GATE=true|false,...", gates, dict, show=dict)
ANYTHING: Final = Kind("TEXT", anything, object, show=lambda value: value or None)
