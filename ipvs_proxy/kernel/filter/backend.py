"""The seam to the packet filter: what the rest of the program knows of it."""

from __future__ import annotations

from collections.abc import Callable

from ipvs_proxy.plan.tables import Role

#: What the kernel calls the set of a role.
NameOfRole = Callable[[Role], str]
