"""The command line. ``ipvs-proxy`` without a subcommand is ``ipvs-proxy run``, with kube-proxy's flags.

The flags of ``run`` and ``plan`` are made from the table of settings; those that are no settings are written out here.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import click

from ipvs_proxy import __version__
from ipvs_proxy.commands.ask import ADDRESS_BESIDE, DEFAULT_ADDRESS
from ipvs_proxy.commands.command_line import (
    completion,
    debug_bundle,
    diff,
    doctor,
    explain,
    find_agent,
    services,
    status,
)
from ipvs_proxy.settings.document import note_lines, write_file
from ipvs_proxy.settings.file import read_settings
from ipvs_proxy.settings.model import Settings, SettingsError
from ipvs_proxy.settings.row import Setting
from ipvs_proxy.settings.table import SETTINGS, SETTINGS_BY_GROUP
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
    """Takes flags without a subcommand as those of ``run``, written in any way that kube-proxy accepts."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` in front where no subcommand is named."""
        arguments = [_as_click_reads_it(argument) for argument in args]
        if ctx.resilient_parsing and not arguments:  # the first word is being completed
            return super().parse_args(ctx, arguments)
        own = {"--help", "-h", "--version", *self.commands}
        return super().parse_args(ctx, arguments if arguments and arguments[0] in own else ["run", *arguments])


class _Run(click.Command):
    """Shows its flags in the groups of the table, after those that are no settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block of help for each group."""
        shown = {option.name: record for option in self.get_params(ctx) if (record := option.get_help_record(ctx))}
        names = {setting.name for setting in SETTINGS}
        blocks = {"Options": [record for name, record in shown.items() if name not in names]} | {
            group: [shown[setting.name] for setting in settings if setting.name in shown]
            for group, settings in SETTINGS_BY_GROUP.items()
        }
        for heading, records in blocks.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=34)


def _as_click_reads_it(argument: str) -> str:
    """Return ``--some_flag`` with hyphens, and ``-v=4``, which is Go's, as ``--v=4``."""
    name, equals, value = argument.partition("=")
    if name == "-v" and equals:
        return f"--v={value}"
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else argument


def _print_version(context: click.Context, _: click.Parameter, wanted: str | None) -> None:
    """Print the version and exit, as kube-proxy does: ``true`` as a sentence, ``raw`` as JSON."""
    if wanted is None or wanted == "false" or context.resilient_parsing:
        return
    if wanted == "raw":
        raw = {"version": __version__, "python": platform.python_version(), "platform": platform.platform()}
        click.echo(json.dumps(raw))
    elif wanted == "true":
        click.echo(f"ipvs-proxy {__version__}")
    else:
        raise click.BadParameter(f"{wanted!r} is not one of true, false, raw")
    context.exit()


_version_option: Final = click.option(
    "--version",
    is_flag=False,
    flag_value="true",
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    metavar="[true|false|raw]",
    help="Print version information and exit; raw prints it as JSON",
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@_version_option
def main() -> None:
    """Keep this node's IPVS table in line with the Services of a Kubernetes cluster.

    Without a subcommand, the agent runs. Its flags are kube-proxy's; see "ipvs-proxy run --help".
    """


@main.command(cls=_Run, short_help="Run the agent until SIGTERM.", epilog=_EXAMPLES)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The path to the configuration file, a KubeProxyConfiguration. It replaces the flags that it has fields for, "
    "and changes to it are applied while the agent runs",
)
@click.option(
    "--write-config-to",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="If set, write the effective configuration, with all defaults, to this file and exit",
)
@click.option(
    "--cleanup",
    is_flag=False,
    flag_value="true",
    default="false",
    type=click.BOOL,
    metavar="[true|false]",
    help='If true, do as "ipvs-proxy cleanup --kube-proxy" and exit; with --service-proxy-name, without --kube-proxy',
)
@click.option(
    "--init-only",
    is_flag=True,
    help="If true, load kernel modules and set sysctls, which needs more privileges than running does, and exit",
)
@_version_option
def run(config: Path | None, write_config_to: Path | None, cleanup: bool, init_only: bool, **flags: object) -> None:
    """Run the agent until SIGTERM, which leaves the kernel as it is: traffic goes on."""
    given = _given(flags)
    try:
        settings = read_settings(given, config)
        if write_config_to is not None:
            _tell_notes(settings)
            write_file(settings, write_config_to)
            return
    except SettingsError as error:
        _refuse(error)
    if cleanup:
        sys.exit(_clean(settings, kube_proxy=not settings.service_proxy_name))
    # Imported only here, so that --help and the errors above come at once.
    from ipvs_proxy.agent import run as agent  # noqa: PLC0415

    if init_only:
        sys.exit(agent.initialize(settings))
    sys.exit(agent.run(settings, reread=partial(read_settings, given, config), config=config))


@main.command("cleanup", short_help="Remove everything that ipvs-proxy set up on this node.")
@click.option(
    "--kube-proxy", is_flag=True, help="If true, also remove what kube-proxy left in its iptables or nftables mode"
)
@click.option("--dry-run", is_flag=True, help="If true, only print what would be removed")
def cleanup_command(kube_proxy: bool, dry_run: bool) -> None:
    """Remove everything that ipvs-proxy set up on this node, and nothing else.

    This removes the virtual servers, the link kube-ipvs0, the ipsets, and the chains of both variants of iptables. What
    kube-proxy's IPVS mode left has the same names and is removed too. Virtual servers of other programs stay.

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
    help="The path to kube-proxy's config.conf, or to a ConfigMap manifest that contains it (- for standard input)",
)
@click.option(
    "--service-proxy-name",
    default="",
    metavar="LABEL",
    help="If set, kube-proxy stays on this node, and only Services with this label move (see ipvs-proxy run --help)",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="The output format")
def check(config: Path | None, service_proxy_name: str, output: str) -> None:
    """Print what will change on this node, what is not supported, and what prevents a migration.

    Exit status: 0 if the node is ready, 2 if something prevents it, 1 if the node or FILE cannot be read.
    """
    from ipvs_proxy.commands.migrate import check as check_node  # noqa: PLC0415

    sys.exit(check_node(config, as_json=output == "json", service_proxy_name=service_proxy_name))


@main.command("plan", cls=_Run, short_help="Print what a start would change on this node.", epilog=_PLAN_EXAMPLES)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The path to the configuration file, a KubeProxyConfiguration. It replaces the flags that it has fields for",
)
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="The output format")
@click.option(
    "--agent",
    callback=find_agent,
    metavar="IP:PORT",
    help="The metrics address of the agent whose configuration is used if none is given here  [default: where one "
    f"answers: {DEFAULT_ADDRESS}, or beside a kube-proxy {ADDRESS_BESIDE}]",
)
@click.option("--offline", is_flag=True, help="Plan against an empty kernel, whatever this system has")
def plan_command(config: Path | None, output: str, agent: str, offline: bool, **flags: object) -> None:
    """Print what a start with these flags would change on this node, and write nothing.

    The flags are those of "ipvs-proxy run". Without --config and the flags that a file replaces, the configuration is
    that of the agent that runs on this node, if one does; standard error says which it was. Objects come from the API
    or from --manifests. Additions are marked +, changes ~ and deletions -. Real servers that are no longer wanted get
    weight 0 first, so that their connections go on.

    With --offline it works anywhere, without root, IPVS or iptables: the plan is made against an empty kernel, and no
    agent is asked. With --manifests that is so by itself on a system without IPVS. Standard error says what is assumed.

    Exit status: 0 if nothing would change, 2 if something would, 1 if there was an error.
    """
    from ipvs_proxy.commands.plan import assume, plan  # noqa: PLC0415

    try:
        assumed = assume(_given(flags), config, None if offline else agent)
    except SettingsError as error:
        _refuse(error)
    _tell_notes(assumed.settings)
    sys.exit(plan(assumed, output, offline=offline))


for _command in (status, services, explain, diff, doctor, debug_bundle, completion):
    main.add_command(_command)


def _given(flags: Mapping[str, object]) -> dict[str, object]:
    """Return the flags that were given; a repeatable one that was not is an empty tuple."""
    return {name: value for name, value in flags.items() if value is not None and value != ()}


def _refuse(error: SettingsError) -> NoReturn:
    """Print one line for each fault and exit."""
    for line in str(error).splitlines():
        click.echo(f"ipvs-proxy: error: {line}", err=True)
    sys.exit(1)


def _tell_notes(settings: Settings) -> None:
    """Print on standard error what the agent would log of its settings."""
    for line in note_lines(settings):
        click.echo(f"ipvs-proxy: warning: {line}", err=True)


def _clean(settings: Settings | None = None, *, kube_proxy: bool, dry_run: bool = False) -> int:
    from ipvs_proxy.commands.cleanup import run as clean_node  # noqa: PLC0415

    exclude = () if settings is None else settings.exclude_cidrs
    return clean_node(kube_proxy=kube_proxy, dry_run=dry_run, exclude=exclude)


def _add_flag(setting: Setting) -> None:
    """Add the flag of a setting to the commands that take settings."""
    names = ["-v", setting.flag] if setting.flag == "--v" else [setting.flag]
    default = f" (default {setting.default})" if setting.default not in {"", "false"} else ""
    option = partial(
        click.option,
        *(*names, setting.name),
        help=setting.help + default,
        metavar=setting.kind.name,
        hidden=setting.hidden,
    )
    is_switch = setting.kind is SWITCH
    for command in (run, plan_command):
        added = option(is_flag=False, flag_value="true") if is_switch else option(multiple=setting.kind.repeatable)
        added(command)


for _setting in SETTINGS:
    if _setting.flag:
        _add_flag(_setting)
