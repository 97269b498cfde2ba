"""The command line. ``ipvs-proxy`` without a subcommand is ``ipvs-proxy run``, with kube-proxy's flags."""

from __future__ import annotations

import json
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from ipvs_proxy import __version__
from ipvs_proxy.commands.ask import DEFAULT_ADDRESS
from ipvs_proxy.commands.command_line import completion, debug_bundle, diff, doctor, explain, services, status
from ipvs_proxy.settings.document import note_lines, write_file
from ipvs_proxy.settings.file import read_settings
from ipvs_proxy.settings.merge import Settings, SettingsError
from ipvs_proxy.settings.table import SETTINGS, SETTINGS_BY_GROUP, Setting
from ipvs_proxy.settings.values import SWITCH

_EXAMPLES = """\b
Examples:
  ipvs-proxy --kubeconfig ~/.kube/config --cluster-cidr 10.244.0.0/16
  ipvs-proxy --config /var/lib/kube-proxy/config.conf
  ipvs-proxy --manifests ./services --ipvs-scheduler lc
"""

_PLAN_EXAMPLES = """\b
Examples:
  ipvs-proxy plan
  ipvs-proxy plan --kubeconfig ~/.kube/config --cluster-cidr 10.244.0.0/16
  ipvs-proxy plan --config /var/lib/kube-proxy/config.conf -o json
  ipvs-proxy plan --manifests ./services
  ipvs-proxy plan --manifests ./services --offline
"""


class _Commands(click.Group):
    """Takes flags without a subcommand for those of ``run``, in the ways of writing them that kube-proxy takes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` in front where no subcommand is named."""
        arguments = [_as_click_reads_it(argument) for argument in args]
        if ctx.resilient_parsing and not arguments:  # the first word is being completed
            return super().parse_args(ctx, arguments)
        own = {"--help", "-h", "--version", *self.commands}
        return super().parse_args(ctx, arguments if arguments and arguments[0] in own else ["run", *arguments])


class _Run(click.Command):
    """Shows its flags in the groups of the table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block of help for each group."""
        shown = {option.name: record for option in self.get_params(ctx) if (record := option.get_help_record(ctx))}
        names = {group: [setting.name for setting in settings] for group, settings in SETTINGS_BY_GROUP.items()}
        grouped = {name for group in names.values() for name in group}
        names["Other"] = [name for name in shown if name is not None and name not in grouped]
        for group, members in names.items():
            with formatter.section(group):
                formatter.write_dl([shown[name] for name in members if name in shown], col_max=34)


def _as_click_reads_it(argument: str) -> str:
    """Write ``--some_flag`` with hyphens, and ``-v=4``, which is Go's, as ``--v=4``."""
    name, equals, value = argument.partition("=")
    if name == "-v" and equals:
        return f"--v={value}"
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def _print_version(context: click.Context, _: click.Parameter, wanted: str | None) -> None:
    """Print the version and end, as kube-proxy does: ``true`` in words, ``raw`` with all there is to know."""
    if wanted is None or wanted == "false" or context.resilient_parsing:
        return
    if wanted == "raw":
        raw = {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}
        click.echo(json.dumps(raw))
    elif wanted == "true":
        click.echo(f"ipvs-proxy {__version__}")
    else:
        raise click.BadParameter(f"{wanted!r} is none of true, false, raw")
    context.exit()


_VERSION_OPTION: Final[dict[str, Any]] = {
    "is_flag": False,
    "flag_value": "true",
    "is_eager": True,
    "expose_value": False,
    "callback": _print_version,
    "metavar": "[true|false|raw]",
    "help": "Print the version and end",
}


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", **_VERSION_OPTION)
def main() -> None:
    """Keep this node's IPVS table as the Services of a Kubernetes cluster ask for.

    Without a subcommand, run the agent: see "ipvs-proxy run --help" for its flags, which are kube-proxy's.
    """


@main.command(cls=_Run, epilog=_EXAMPLES)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A KubeProxyConfiguration; it replaces the flags that it has fields for, and is followed",
)
@click.option(
    "--write-config-to",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the effective configuration, with all defaults, and end",
)
@click.option(
    "--cleanup",
    is_flag=False,
    flag_value="true",
    default="false",
    type=click.BOOL,
    metavar="[true|false]",
    help='As kube-proxy\'s: the same as "ipvs-proxy cleanup --kube-proxy"',
)
@click.option("--init-only", is_flag=True, help="Load modules and set sysctls, which needs more rights, and end")
@click.option("--version", **_VERSION_OPTION)
def run(config: Path | None, write_config_to: Path | None, cleanup: bool, init_only: bool, **flags: Any) -> None:
    """Run the agent until SIGTERM; the kernel then stays as it is."""
    # A repeatable flag that was not given is an empty tuple.
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    try:
        settings = read_settings(given, config)
        if write_config_to is not None:
            _tell_notes(settings)
            write_file(settings, write_config_to)
            return
    except SettingsError as error:
        for line in str(error).splitlines():
            click.echo(f"ipvs-proxy: error: {line}", err=True)
        sys.exit(1)
    if cleanup:
        sys.exit(_clean(kube_proxy=True, dry_run=False, exclude=settings.exclude_cidrs))
    # Only here: --help and errors above answer at once.
    from ipvs_proxy.agent import run as agent  # noqa: PLC0415

    if init_only:
        sys.exit(agent.initialize(settings))
    sys.exit(agent.run(settings, reread=partial(read_settings, given, config), config=config))


@main.command("cleanup", short_help="Remove everything of ours from this node.")
@click.option("--kube-proxy", is_flag=True, help="Also what kube-proxy left in its iptables or nftables mode")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed")
def cleanup_command(kube_proxy: bool, dry_run: bool) -> None:
    """Remove everything of ours from this node, and nothing else.

    That is: the virtual servers, the link kube-ipvs0, the ipsets, and the chains of both variants of iptables. What
    kube-proxy's IPVS mode leaves has the same names and goes with it. Virtual servers of others stay.

    Exit status: 0 if the node is clean, 1 if something could not be removed, or if an agent or kube-proxy is running
    here, which would put everything back.
    """
    sys.exit(_clean(kube_proxy=kube_proxy, dry_run=dry_run))


@main.group()
def migrate() -> None:
    """Move this node from kube-proxy to ipvs-proxy."""


@migrate.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="kube-proxy's config.conf, or a ConfigMap manifest that contains it; - for standard input",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How the report is written")
def check(config: Path | None, output: str) -> None:
    """Say what will change on this node, what is not supported, and what stands in the way.

    Exit status: 0 if the node is ready, 2 if something stands in the way, 1 if the node or FILE cannot be read.
    """
    from ipvs_proxy.commands.migrate import check as check_node  # noqa: PLC0415

    sys.exit(check_node(config, as_json=output == "json"))


@main.command("plan", cls=_Run, short_help="What a start would change on this node.", epilog=_PLAN_EXAMPLES)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A KubeProxyConfiguration; it replaces the flags that it has fields for",
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How the answer is written"
)
@click.option(
    "--agent",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="IP:PORT",
    help="Where the metrics server of the agent listens whose configuration counts if there is none here",
)
@click.option("--offline", is_flag=True, help="Plan against an empty kernel, whatever this system has")
def plan_command(config: Path | None, output: str, agent: str, offline: bool, **flags: Any) -> None:
    """Say what a start with these flags would change on this node; nothing is written.

    The flags are those of "ipvs-proxy run". Without --config and flags that a file replaces, the configuration is that
    of the agent that runs on this node, if one does; standard error says which it was. Objects come from the API or
    from --manifests. + is added, ~ changed and - deleted; real servers that are not wanted get weight 0 first, so that
    their connections go on.

    With --offline it works anywhere, without root, IPVS or iptables: the plan is made against an empty kernel, and no
    agent is asked. With --manifests that is so by itself on a system without IPVS. Standard error says what is assumed.

    Exit status: 0 if nothing would change, 2 if something would, 1 if that cannot be said.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    from ipvs_proxy.commands.plan import assume, plan  # noqa: PLC0415

    try:
        assumed = assume(given, config, None if offline else agent)
    except SettingsError as error:
        for line in str(error).splitlines():
            click.echo(f"ipvs-proxy: error: {line}", err=True)
        sys.exit(1)
    _tell_notes(assumed.settings)
    sys.exit(plan(assumed, output, offline=offline))


for _command in (status, services, explain, diff, doctor, debug_bundle, completion):
    main.add_command(_command)


def _tell_notes(settings: Settings) -> None:
    """Say on standard error what the agent would log of its settings."""
    for line in note_lines(settings):
        click.echo(f"ipvs-proxy: warning: {line}", err=True)


def _clean(**how: Any) -> int:
    from ipvs_proxy.commands.cleanup import run as clean_node  # noqa: PLC0415

    return clean_node(**how)


def _add_flag(setting: Setting) -> None:
    names = ["-v", setting.flag] if setting.flag == "--v" else [setting.flag]
    how: dict[str, Any] = {"multiple": setting.kind.repeatable}
    if setting.kind is SWITCH:
        how |= {"is_flag": False, "flag_value": "true"}
    default = f" (default {setting.default})" if setting.default not in {"", "false"} else ""
    text = setting.help + default
    for command in (run, plan_command):
        click.option(*names, setting.name, help=text, metavar=setting.kind.name, hidden=setting.hidden, **how)(command)


for _setting in SETTINGS:
    if _setting.flag:
        _add_flag(_setting)
