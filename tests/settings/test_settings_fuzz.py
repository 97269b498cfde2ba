"""Nothing that a configuration file can hold, or be, ends in anything but settings or one line for each fault."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ipvs_proxy.settings.document import configz, note_lines, write_file
from ipvs_proxy.settings.file import read_settings
from ipvs_proxy.settings.live import Reload
from ipvs_proxy.settings.model import SettingsError
from ipvs_proxy.settings.row import KUBE_PROXY, OWN
from ipvs_proxy.settings.table import SETTINGS
from tests.support.configuration_file import HEAD, following
from tests.support.hostile_files import BOMB, make_huge, make_pipe, make_socket

#: Seconds of this process for one file of some kilobytes.
PATIENCE = 1.0
PATHS = [setting.field for setting in SETTINGS if setting.field and setting.document is KUBE_PROXY]
_TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["9" * 3000, "9s" * 2000, "1:" * 2000 + "1", "10.0.0.0/8," * 400, "::" * 2000, "\ud800"]),
)
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def use(path: Path) -> None:
    begun = time.process_time()
    try:
        found = read_settings({}, path)
    except SettingsError as error:
        told = str(error).splitlines()
    else:
        told = [*note_lines(found), "read"]
        json.dumps(configz(found), allow_nan=False)
        write_file(found, path)
    assert told
    assert max(map(len, told)) < 12_000
    "".join(told).encode()
    assert time.process_time() - begun < PATIENCE


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "config.conf"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.one_of(st.sampled_from(PATHS), st.text(max_size=8)), _VALUES, max_size=5), st.booleans())
def test_any_value_in_any_field_is_read_or_refused(scratch: Path, fields: dict[str, Any], as_json: bool) -> None:
    document: dict[str, Any] = {"apiVersion": KUBE_PROXY.api_version, "kind": KUBE_PROXY.kind}
    for path, value in fields.items():
        section, dot, name = path.partition(".")
        if dot and isinstance(document.setdefault(section, {}), dict):
            document[section][name] = value
        elif not dot:
            document[section] = value
    text = json.dumps(document) if as_json else yaml.safe_dump(document)
    scratch.write_text(text, encoding="utf-8", errors="surrogatepass")
    use(scratch)


_PIECES = st.sampled_from(
    [
        *(f"{path.rpartition('.')[2]}: " for path in PATHS),
        *("ipvs:\n  ", "- ", "[", "]", "{", "}", "'", '"', "&a ", "*a", "<<: ", "!!int ", "!!bool ", "!!float ", "? "),
        *(
            "!!timestamp ",
            "!!set ",
            "!!binary ",
            "!!omap ",
            "---\n",
            "...\n",
            "|\n ",
            "\n",
            ": ",
            "1:1:1.5",
            "0x",
            "\t",
        ),
        *(HEAD, f"apiVersion: {OWN.api_version}\nkind: {OWN.kind}\n", "\0", "\ufeff", "é", "%YAML 1.1\n", "# "),
    ]
)


@settings(max_examples=250, deadline=None)
@given(st.lists(st.one_of(_PIECES, st.text(max_size=5)), max_size=12).map("".join), st.booleans())
def test_any_text_is_read_or_refused(scratch: Path, text: str, with_head: bool) -> None:
    scratch.write_text((HEAD if with_head else "") + text, encoding="utf-8", errors="surrogatepass")
    use(scratch)


@pytest.mark.parametrize(
    "value",
    [
        *("!!binary aGVsbG8=", "!!binary //8=", "!!timestamp 2026-01-01", "!!timestamp 2026-01-01T00:00:00Z"),
        *("!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", ".nan", "-.inf", "1.0e+400", "{a: [!!binary aGVsbG8=]}"),
        *("NaN", "Infinity", "1e400", "[-Infinity]"),
    ],
)
@pytest.mark.parametrize("field", ["options", "vmodule", "flushFrequency", "verbosity"])
def test_what_is_read_can_be_shown_as_json(scratch: Path, field: str, value: str) -> None:
    scratch.write_text(f"{HEAD}logging: {{{field}: {value}}}\n")
    use(scratch)
    scratch.write_text(
        f'{{"apiVersion": "{KUBE_PROXY.api_version}", "kind": "{KUBE_PROXY.kind}", "logging": {{"{field}": {value}}}}}'
    )
    use(scratch)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(HEAD.encode() + content)
    use(scratch)


HOSTILE = {
    "bool": "mode: !!bool maybe",
    "int": 'mode: !!int ""',
    "float": 'mode: !!float ""',
    "timestamp": "mode: !!timestamp x",
    "base 60": "mode: !!float 1" + ":1" * 100_000 + ".5",
    "aliases": BOMB,
    "depth": "mode: " + "[" * 50_000,
    "surrogate": 'mode: "\\ud800"',
    "duration": f"ipvs: {{syncPeriod: {'9' * 250_000}}}",
    "unknown fields": "\n".join(f"unknown{number}: 1" for number in range(10_000)),
    "cut off": "ipvs: {scheduler",
    "nothing": "",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_followed_file_that_becomes_hostile_leaves_what_runs(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.conf"
    path.write_text(HEAD + "ipvs: {scheduler: lc}\n")
    async with following(path) as followed:
        with capture_logs() as logs:
            path.write_text((HEAD if HOSTILE[name] else "") + HOSTILE[name])
            outcome = await followed.outcome()
        if name != "unknown fields":
            assert outcome is Reload.REFUSED
            assert followed.running.scheduler == "lc"
        assert sum(len(str(line)) for line in logs) < 5000
        path.write_text(HEAD + "ipvs: {scheduler: sh}\n")
        assert await followed.outcome() is Reload.APPLIED
        assert followed.running.scheduler == "sh"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_pipe, "it is a pipe, not a file"),
        (make_socket, "No such device or address"),
        (Path.mkdir, "it is a directory, not a file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
        (lambda path: path.symlink_to("/proc/self/mem"), "Input/output error"),
        (make_huge, "it is larger than 1 MiB"),
    ],
    ids=["pipe", "socket", "directory", "loop", "device", "unreadable", "huge"],
)
def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "config.conf"
    make(path)
    with pytest.raises(SettingsError) as caught:
        read_settings({}, path)
    assert str(caught.value) == f"--config {path}: {reason}"


async def test_a_file_written_in_place_is_read_when_it_has_rested(tmp_path: Path) -> None:
    """The first half of a file parses, and would put defaults in the place of what follows."""
    path = tmp_path / "config.conf"
    text = f"{HEAD}ipvs: {{scheduler: lc}}\nclusterCIDR: 10.0.0.0/8\n"
    path.write_text(text)
    async with following(path, interval=0.2) as followed:
        inode = path.stat().st_ino
        path.write_text(HEAD)
        await asyncio.sleep(0.25)
        path.write_text(text + "# longer\n")
        assert path.stat().st_ino == inode
        assert await followed.outcome() is Reload.UNCHANGED
        assert followed.running.scheduler == "lc"
