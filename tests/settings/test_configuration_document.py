"""The documents about the configuration: made from the table of settings, which has all that kube-proxy has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from ipvs_proxy.settings.document import document
from ipvs_proxy.settings.file import read_file
from ipvs_proxy.settings.merge import effective
from ipvs_proxy.settings.row import KUBE_PROXY, OWN
from ipvs_proxy.settings.table import SETTINGS
from tools.configuration import DOCUMENT, schema

BEHAVIOUR = Path(__file__).parents[3] / "shared/docs/kube-proxy-ipvs-behaviour.md"
#: Defaults that the behaviour document gives in prose, and what stands here for them.
PROSE = {
    "healthzBindAddress": "0.0.0.0:10256",
    "metricsBindAddress": "127.0.0.1:10249",
    "mode": "ipvs",
    "detectLocalMode": "ClusterCIDR",
    "logging.format": "auto",
    "ipvs.scheduler": "rr",
}
#: What stands for "nothing" in the behaviour document.
NOT_SET = {"null", "{}", "[]", "\N{EN DASH}"}
_WINDOWS = ("networkName", "sourceVip", "enableDSR", "rootHnsEndpointName", "forwardHealthCheckVip")
UNUSUAL = {
    f"winkernel.* ({', '.join(_WINDOWS)}), windowsRunAsService": [
        *(f"winkernel.{name}" for name in _WINDOWS),
        "windowsRunAsService",
    ]
}
#: Flags that are commands or a file, and no settings.
COMMANDS = {"--config", "--write-config-to", "--cleanup", "--init-only", "--version", "--help"}


def rows(heading: str) -> Iterator[list[str]]:
    """Return the cells of the table below a heading of the behaviour document."""
    if not BEHAVIOUR.exists():
        pytest.skip(f"{BEHAVIOUR} is not beside this checkout")
    section = BEHAVIOUR.read_text().split(f"## {heading} ", 1)[1].split("\n## ", 1)[0]
    for line in section.splitlines():
        if line.startswith("|") and not line.startswith(("| field", "| flag", "|---")):
            yield [cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def names(cell: str) -> list[str]:
    """Return the full names of ``a.b / c``; those in one section share its name."""
    if cell in UNUSUAL:
        return UNUSUAL[cell]
    first, *others = [part.strip().removesuffix(".*") for part in cell.split("/")]
    section, dot, _ = first.partition(".")
    return [first, *(f"{section}{dot}{name}" for name in others)]


def defaults_of(cell: str, count: int) -> list[str]:
    """Return the defaults of so many fields, as a flag writes them; the last one is for all that are left."""
    parts = [re.sub(r"\(.*?\)|[*\"]", "", part).strip() for part in (cell.split("/") if count > 1 else [cell])]
    values = ["" if part in NOT_SET else part for part in parts]
    return values + values[-1:] * (count - len(values))


def test_every_field_of_kube_proxy_is_there_with_its_default() -> None:
    known = {setting.field: setting for setting in SETTINGS if setting.field and setting.document is KUBE_PROXY}
    seen = set()
    for cell, default_cell, *_ in rows("10.2"):
        fields = names(cell)
        for field, default in zip(fields, defaults_of(default_cell, len(fields)), strict=False):
            seen.add(field)
            setting = known[field]
            ours = setting.default if setting.file_default is None else setting.file_default
            if field in PROSE:
                assert ours == PROSE[field], field
            elif cell not in UNUSUAL:
                assert setting.kind.read(ours) == setting.kind.read(default), field
    assert seen == known.keys()


def test_every_flag_of_kube_proxy_is_there() -> None:
    known = {setting.flag for setting in SETTINGS}
    flags = {flag for cell, *_ in rows("10.3") for flag in re.findall(r"--[a-z-]*[a-z]", cell)}
    assert len(flags) > 50
    assert flags - known == COMMANDS
    own = {"--manifests", *(setting.flag for setting in SETTINGS if setting.document is OWN)}
    assert known - flags - own == {""}


def test_schema_holds_for_what_is_written_and_the_example_and_not_for_others(tmp_path: Path) -> None:
    validator = Draft202012Validator(schema())
    Draft202012Validator.check_schema(schema())
    validator.validate(document(effective({"drain_timeout": "90s"}), OWN))
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    validator.validate(list(yaml.safe_load_all(example))[1])
    file = tmp_path / "config.conf"
    file.write_text(example)
    fields, notes = read_file(file)
    assert notes == []
    assert effective({}, fields).drain_timeout == 600.0
    for wrong in ({"drainTimeout": "soon"}, {"drainTimeout": 5}, {"magic": 1}, {"kind": "Other"}):
        head = {"apiVersion": OWN.api_version, "kind": OWN.kind}
        assert not validator.is_valid(head | wrong)
