"""Roles by the names of their ipsets, which are what a reader of a test knows from a node."""

from __future__ import annotations

from typing import Any

from ipvs_proxy.kernel.filter.ipset.names import definitions, name_of
from ipvs_proxy.plan.tables import Role

_ROLES = {definition.name: definition.role for definition in definitions()}


def role(name: str) -> Role:
    """Return the role whose set the kernel calls ``KUBE-CLUSTER-IP``, say."""
    return _ROLES[name]


def named(entries: dict[Role, Any]) -> dict[str, Any]:
    """Return what is kept by role, by the names of the sets."""
    return {name_of(one): members for one, members in entries.items()}
