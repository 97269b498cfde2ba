"""The command line as a process, as a new user would try it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ipvs_proxy import __version__
from tests.support.namespaces import missing_piece


def ipvs_proxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ipvs_proxy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_help_names_the_flags_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom ipvs_proxy.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('aiohttp', 'kubernetes_asyncio', 'pyroute2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    for shown in ("--ipvs-scheduler", "Balancing:\n", "--config FILE", "-h, --help", "Examples:\n"):
        assert shown in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_version() -> None:
    assert ipvs_proxy("--version").stdout == f"ipvs-proxy {__version__}\n"
    assert ipvs_proxy("run", "--version=true").stdout == f"ipvs-proxy {__version__}\n"
    assert json.loads(ipvs_proxy("--version=raw").stdout)["version"] == __version__
    assert ipvs_proxy("--version=maybe").returncode == 2


def test_effective_configuration_is_written_and_leads_to_itself(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    flags = ["--ipvs-scheduler=sh", "--nodeport-addresses=primary", "--drain-timeout=90s", "--cluster-cidr=10.0.0.0/8"]
    assert ipvs_proxy(*flags, "--write-config-to", str(first)).returncode == 0
    assert ipvs_proxy("--config", str(first), "--write-config-to", str(second)).returncode == 0
    assert first.read_text() == second.read_text()
    kube_proxy, own = yaml.safe_load_all(first.read_text())
    assert kube_proxy["ipvs"]["scheduler"] == "sh"
    assert kube_proxy["nodePortAddresses"] == ["primary"]
    assert own["drainTimeout"] == "1m30s"


def test_place_that_cannot_be_written_is_named() -> None:
    done = ipvs_proxy("--write-config-to", "/nonexistent/config")
    assert done.stderr == "ipvs-proxy: error: --write-config-to /nonexistent/config: No such file or directory\n"
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [["--ipvs-sync-period=soon"], ["run", "--ipvs_sync_period", "soon"]])
def test_unusable_setting_ends_the_start_with_one_line(arguments: list[str]) -> None:
    done = ipvs_proxy(*arguments)
    assert done.returncode == 1
    assert done.stderr == "ipvs-proxy: error: --ipvs-sync-period: 'soon' is not a duration such as 30s or 1m30s\n"


def test_settings_reach_the_agent_in_the_ways_that_kube_proxy_takes_flags(tmp_path: Path) -> None:
    config = tmp_path / "config.conf"
    config.write_text("kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nmagic: 1\n")
    code = (
        "import sys, types\n"
        "agent = types.ModuleType('ipvs_proxy.agent.run')\n"
        "agent.run = lambda settings, **_: print(settings) or 7\n"
        "sys.modules['ipvs_proxy.agent.run'] = agent\n"
        "from ipvs_proxy.cli import main\nmain()\n"
    )
    flags = ["-v=4", "--ipvs_exclude_cidrs=10.0.0.0/8,10.1.0.0/16", "--ipvs-exclude-cidrs", "fd00::/8"]
    flags += ["--masquerade-all", "--ipvs-strict-arp=false", "--hostname_override=Node_1"]
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 7, done.stderr
    for part in (
        "verbosity=4,",
        "exclude_cidrs=(IPv4Network('10.0.0.0/8'), IPv4Network('10.1.0.0/16'), IPv6Network('fd00::/8'))",
        "masquerade_all=True",
        "strict_arp=False",
        "node_name='node_1'",
    ):
        assert part in done.stdout
    filed = [*command, "run", *flags, "--config", str(config)]
    done = subprocess.run(filed, capture_output=True, text=True, check=False, timeout=60)
    assert "exclude_cidrs=()" in done.stdout
    assert "'config_decoded_leniently', fields={'unknown': ['KubeProxyConfiguration.magic'], " in done.stdout
    assert "'flags': ['--ipvs-exclude-cidrs', '--ipvs-strict-arp', '--masquerade-all']" in done.stdout


def test_unknown_flag_is_bad_usage() -> None:
    done = ipvs_proxy("--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr


def test_missing_file_is_named() -> None:
    done = ipvs_proxy("--config", "/nonexistent/config")
    assert (done.returncode, done.stderr) == (
        1,
        "ipvs-proxy: error: --config /nonexistent/config: No such file or directory\n",
    )


@pytest.mark.skipif(missing_piece() is None, reason="this kernel has all that the agent needs")
def test_missing_kernel_piece_ends_the_start_with_one_line_that_names_the_remedy(tmp_path: Path) -> None:
    done = ipvs_proxy("--manifests", str(tmp_path), "--logging-format", "json")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ipvs-proxy: error: ")
    assert "modprobe" in last or "module" in last or "root" in last
