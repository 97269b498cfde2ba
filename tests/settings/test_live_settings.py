"""Which settings of a changed file a running agent takes."""

from __future__ import annotations

from ipvs_proxy.settings.live import changes, reloaded
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.table import SETTINGS

KIND = "KubeProxyConfiguration"
RUNNING = effective({}, {})
WANTED = effective({}, {f"{KIND}.ipvs.scheduler": "lc", f"{KIND}.iptables.masqueradeBit": 15, f"{KIND}.portRange": "1"})


def test_changes_are_told_apart_by_the_rows() -> None:
    assert changes(RUNNING.fields, RUNNING.fields) == ([], [])
    live, restart = changes(RUNNING.fields, WANTED.fields)
    assert live == [f"{KIND}.ipvs.scheduler"]
    assert restart == [f"{KIND}.iptables.masqueradeBit", f"{KIND}.portRange"]


def test_the_running_settings_take_what_is_live_and_keep_the_rest() -> None:
    found = reloaded(RUNNING, WANTED)
    assert changes(found.fields, WANTED.fields).live == []
    for setting in SETTINGS:
        if not setting.without_effect:
            source = WANTED if setting.live else RUNNING
            assert getattr(found, setting.name) == getattr(source, setting.name)
    assert reloaded(found, RUNNING) == RUNNING
