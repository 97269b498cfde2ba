"""The command line. ``ipvs-proxy`` without a subcommand is ``ipvs-proxy run``, with kube-proxy's flags."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import click

from ipvs_proxy import __version__
from ipvs_proxy.agent.settings import SETTINGS, SettingsError, effective
from ipvs_proxy.agent.settings_file import read_file

_EXAMPLES = """\b
Examples:
  ipvs-proxy --kubeconfig ~/.kube/config --cluster-cidr 10.244.0.0/16
  ipvs-proxy --config /var/lib/kube-proxy/config.conf
  ipvs-proxy --manifests ./services --ipvs-scheduler lc
"""


class _Commands(click.Group):
    """Takes flags without a subcommand for those of ``run``, and underscores in flags for hyphens."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` in front where no subcommand is named."""
        arguments = [_with_hyphens(argument) for argument in args]
        own = {"--help", "-h", "--version", *self.commands}
        return super().parse_args(ctx, arguments if arguments and arguments[0] in own else ["run", *arguments])


def _with_hyphens(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ipvs-proxy")
def main() -> None:
    """Keep this node's IPVS table as the Services of a Kubernetes cluster ask for.

    Without a subcommand, run the agent: see "ipvs-proxy run --help" for its flags, which are kube-proxy's.
    """


@main.command(epilog=_EXAMPLES)
@click.option(
    "--config", type=click.Path(path_type=Path), help="A KubeProxyConfiguration file; it replaces other flags"
)
def run(config: Path | None, **flags: Any) -> None:
    """Run the agent until SIGTERM; the kernel then stays as it is."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        fields, notes = (None, []) if config is None else read_file(config)
        settings = effective(given, fields)
    except SettingsError as error:
        for line in str(error).splitlines():
            click.echo(f"ipvs-proxy: error: {line}", err=True)
        sys.exit(1)
    # Only here: --help and errors above answer at once.
    from ipvs_proxy.agent.run import run as run_agent  # noqa: PLC0415

    sys.exit(run_agent(dataclasses.replace(settings, notes=(*settings.notes, *notes))))


for _setting in SETTINGS:
    _shown = "" if _setting.default in {"", False} else f" (default {_setting.default})"
    _names = ["-v", _setting.flag] if _setting.flag == "--v" else [_setting.flag]
    _how: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if _setting.is_switch else {}
    click.option(*_names, _setting.name, help=_setting.help + _shown, metavar="VALUE", **_how)(run)
