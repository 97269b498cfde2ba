"""Which kernel is chosen: one table."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import build, emulated, machine

BUILT, NEW, STOCK = Path("/cache/7.2.1-1-abc/linux"), Path("/cache/7.2.2-1-abc/linux"), Path("/boot/vmlinuz-6.1-amd64")


@pytest.mark.parametrize(
    ("wish", "ipvs", "built", "can_build", "may_build", "expected"),
    [
        ("", True, True, True, True, ("own", "it has IPVS")),
        ("", False, True, True, True, ("native", "this machine's own has no IPVS")),
        ("", False, False, True, True, ("native", "built now")),
        ("", False, False, True, False, ("stock", "the native one is not built")),
        ("", False, False, False, True, ("stock", "the native one is not built")),
        ("own", False, True, True, True, ("own", "RING_KERNEL asks for it")),
        ("native", True, True, True, True, ("native", "RING_KERNEL asks for it")),
        ("native", True, False, True, False, ("native", "built now")),
        ("stock", True, True, True, True, ("stock", "RING_KERNEL asks for it")),
    ],
)
def test_the_choice(wish, ipvs, built, can_build, may_build, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RING_KERNEL", wish)
    monkeypatch.setattr(machine, "has_ipvs", lambda: ipvs)
    monkeypatch.setattr(machine, "_can_build", lambda: can_build)
    monkeypatch.setattr(build, "built", lambda: BUILT if built else None)
    monkeypatch.setattr(build, "build", lambda: NEW)
    monkeypatch.setattr(emulated, "stock_kernel", lambda: STOCK)
    chosen = machine.choose(may_build=may_build)
    assert (chosen.kind, chosen.reason) == expected
    assert chosen.kernel == {"own": Path(), "stock": STOCK}.get(chosen.kind, BUILT if built else NEW)


def test_an_unknown_wish_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RING_KERNEL", "fast")
    with pytest.raises(SystemExit, match="RING_KERNEL=fast is none of own, native, stock"):
        machine.choose()


def test_the_choice_says_in_one_line_which_kernel_and_why() -> None:
    assert (
        str(machine.Machine("native", BUILT, "this machine's own has no IPVS"))
        == "lab: Linux 7.2.1-1 as a program, at native speed: this machine's own has no IPVS"
    )
    assert (
        str(machine.Machine("stock", STOCK, "RING_KERNEL asks for it"))
        == "lab: vmlinuz-6.1-amd64 in an emulated machine (slow): RING_KERNEL asks for it"
    )
