"""The table of settings: each is declared once, with its type, default and help."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from mypy import api

from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.model import Settings
from ipvs_proxy.settings.row import ROW, Group, Setting
from ipvs_proxy.settings.table import SETTINGS, SETTINGS_BY_GROUP

USED = [setting for setting in SETTINGS if not setting.without_effect]


def test_no_default_is_known_outside_the_rows() -> None:
    rows = {field.name for field in fields(Settings) if ROW in field.metadata}
    others = {field.name: field.default for field in fields(Settings) if field.name not in rows}
    assert others == {"node_name": MISSING, "notes": (), "fields": MISSING}
    assert rows == {setting.name for setting in USED}


@pytest.mark.parametrize("setting", USED, ids=lambda setting: setting.name)
def test_settings_that_nobody_merged_have_the_defaults_of_the_command_line(setting: Setting) -> None:
    expected = getattr(effective({}), setting.name)
    assert getattr(Settings("node"), setting.name) == expected
    assert getattr(effective({setting.name: setting.default} if setting.flag else {}), setting.name) == expected


def test_mypy_compares_the_type_of_a_field_with_what_its_kind_reads(tmp_path: Path) -> None:
    declared = {
        "right": ("bool", "SWITCH"),
        "as_right": ("float", "DURATION"),
        "other": ("str", "SWITCH"),
        "less": ("int", "DURATION"),
    }
    lines = [
        "from ipvs_proxy.settings.row import Group, row",
        "from ipvs_proxy.settings.values import DURATION, SWITCH",
    ]
    lines += ["class Settings:"]
    lines += [
        f"    {name}: {kind} = row(Group.LOGS, '', '', {read}, '0', '')" for name, (kind, read) in declared.items()
    ]
    told, *_ = api.run(["--config-file=", "--strict", "--cache-dir", str(tmp_path), "-c", "\n".join(lines)])
    assert re.findall(r"^<string>:(\d+): error: .*\[(.*)\]$", told, re.MULTILINE) == [
        ("6", "assignment"),
        ("7", "assignment"),
    ]


def test_names_flags_and_paths_are_unique_and_every_group_has_settings() -> None:
    for values in (
        [setting.name for setting in SETTINGS],
        [setting.flag for setting in SETTINGS if setting.flag],
        [setting.path for setting in SETTINGS if setting.path],
    ):
        assert len(values) == len(set(values))
    grouped = [setting.name for settings in SETTINGS_BY_GROUP.values() for setting in settings]
    assert sorted(grouped) == sorted(setting.name for setting in SETTINGS)
    assert all(SETTINGS_BY_GROUP[group] for group in Group)


@pytest.mark.parametrize("setting", USED, ids=lambda setting: setting.name)
def test_help_is_worded_as_that_of_kube_proxy(setting: Setting) -> None:
    assert setting.help.startswith(("The ", "If ", "How ", "Whose ", "Accepted ", "Deprecated: "))
    assert not setting.help.endswith(".")
    # The row's default is added to the help.
    assert "(default" not in setting.help


@pytest.mark.parametrize(("text", "seconds"), [("0s", 30.0), ("", 30.0), ("5s", 5.0)])
def test_zero_stands_for_the_default_where_the_row_says_so(text: str, seconds: float) -> None:
    path = "KubeProxyConfiguration.ipvs.syncPeriod"
    assert effective({}, {path: text}).sync_period == seconds
    assert effective({"sync_period": text}).sync_period == seconds


def test_a_file_that_does_not_set_a_field_may_have_a_default_of_its_own() -> None:
    assert (effective({}).min_sync_period, effective({}, {}).min_sync_period) == (1.0, 0.0)
