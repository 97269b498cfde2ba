"""The command lines of the commands that show: their arguments, options and help. What they do is in other modules.

Each prints text, JSON or YAML. Their exit status is 0, or 1 with one line on standard error; ``diff`` and ``doctor``
have 2 as well, where they find something.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.shell_completion import get_completion_class

from ipvs_proxy.commands import ask, overview
from ipvs_proxy.commands.changes import changes_text
from ipvs_proxy.commands.explain import find_route, find_service, route_text, search_service, service_text
from ipvs_proxy.commands.text import document
from ipvs_proxy.state.documents import Differences, NodeState

F = TypeVar("F", bound=Callable[..., Any])

#: All Services: more than any cluster has.
_ALL: Final = 999_999_999
#: Seconds between two refreshes of ``--watch``; the kernel updates its rates every two.
_INTERVAL: Final = 2.0
_CLEAR: Final = "\x1b[H\x1b[2J"


def find_agent(context: click.Context, _: click.Parameter, value: str | None) -> str:
    """Return where to ask: where that is not said, where an agent answers."""
    return value or (ask.DEFAULT_ADDRESS if context.resilient_parsing else ask.find_agent())


_agent_option = click.option(
    "--agent",
    callback=find_agent,
    metavar="IP:PORT",
    help=f"Where the agent's metrics server listens  [default: {ask.DEFAULT_ADDRESS}, or beside a kube-proxy "
    f"{ask.ADDRESS_BESIDE}]",
)


def _shared(command: F) -> F:
    """Add the options of every command that prints a document."""
    return click.option(
        "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How the answer is written"
    )(_agent_option(command))


def _fail(text: str) -> NoReturn:
    click.echo(f"ipvs-proxy: error: {text}", err=True)
    sys.exit(1)


@click.command(
    short_help="Show what in the kernel differs from what the agent wants.",
    epilog="\b\nExamples:\n  ipvs-proxy diff\n  ipvs-proxy diff -o json | jq '.changes[].object'\n",
)
@_shared
def diff(agent: str, output: str) -> None:
    """Show what in the kernel differs from what the agent on this node wants: what its next audit would change.

    The agent reads all tables anew. + is missing, ~ is wrong, - is there and should not be.

    Exit status: 0 if nothing differs, 2 if something does, 1 if the agent cannot tell.
    """
    try:
        found = ask.ask(agent, "/state/differences", Differences)
    except ask.NoAnswer as error:
        _fail(str(error))
    click.echo(changes_text(found) if output == "text" else document(found, output), nl=False)
    sys.exit(2 if found.changes else 0)


@click.command(
    short_help="Show the health of the agent on this node.",
    epilog="\b\nExamples:\n  ipvs-proxy status\n  ipvs-proxy status -o json | jq .healthy\n",
)
@_shared
def status(agent: str, output: str) -> None:
    """Show the agent on this node: its health, counts, and the last changes and repairs."""
    try:
        state = ask.ask(agent, "/state", NodeState, limit=0)
    except ask.NoAnswer as error:
        _fail(str(error))
    click.echo(overview.status_text(state) if output == "text" else document(state, output), nl=False)


@click.command(
    short_help="List Services with their endpoints and rates.",
    epilog="\b\nExamples:\n  ipvs-proxy services\n  ipvs-proxy services kube-system/ --watch\n"
    "  ipvs-proxy services 10.96.0.10 -o yaml\n",
)
@click.argument("search", default="")
@click.option("-w", "--watch", is_flag=True, help="Refresh every two seconds, until interrupted")
@click.option("--limit", type=click.IntRange(min=1), default=_ALL, help="Show at most this many")
@_shared
def services(search: str, watch: bool, limit: int, agent: str, output: str) -> None:
    """List Services with their endpoints and rates.

    SEARCH is a part of NAMESPACE/NAME, or an address; without it all are listed. ENDPOINTS counts those that get new
    connections and, behind a plus, those that drain. STATE is "differs" if the kernel is not as it should be, and
    "left out" if a part of the Service cannot be served; see "ipvs-proxy explain". If more than 256 are listed, rates
    are not read.
    """
    try:
        while True:
            state = ask.ask_for_services(agent, search=search, limit=limit)
            if output == "text":
                text = overview.services_text(state.services) if state.services else _nothing(search)
            else:
                text = document(state.services, output)
            click.echo((_CLEAR if watch and sys.stdout.isatty() else "") + text, nl=False)
            if not watch:
                return
            time.sleep(_INTERVAL)
    except ask.NoAnswer as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(0)


def _nothing(search: str) -> str:
    return f"no Service has {search!r} in its name or as an address\n" if search else "there is no Service\n"


@click.command(
    short_help="Explain which endpoints a Service has, and where packets go.",
    epilog="\b\nExamples:\n  ipvs-proxy explain kube-system/kube-dns\n  ipvs-proxy explain 10.96.0.10:53/UDP\n"
    "  ipvs-proxy explain --from 10.244.1.7 10.96.0.1:443\n",
)
@click.argument("what", metavar="SERVICE|ADDRESS:PORT[/PROTOCOL]")
@click.option("--from", "client", metavar="IP", help="Follow a new connection from this address")
@_shared
def explain(what: str, client: str | None, agent: str, output: str) -> None:
    """Explain which virtual servers a Service has, which endpoints are in or out and why, and where a packet would go.

    A Service is NAMESPACE/NAME, or NAME in the namespace default. With --from, follow a new connection step by step:
    source ranges, policies, the virtual server, and whether the client's address is masqueraded.
    """
    try:
        if client is not None:
            route = find_route(agent, client, what)
            click.echo(route_text(route) if output == "text" else document(route, output), nl=False)
            return
        state = find_service(agent, what)
        click.echo(service_text(state) if output == "text" else document(state, output), nl=False)
    except ask.NotThere as error:
        similar = search_service(agent, what)
        _fail(f"{error}" + (f"; did you mean {', '.join(similar)}?" if similar else ""))
    except ask.NoAnswer as error:
        _fail(str(error))


@click.command(
    short_help="Find what on this node keeps Services from working.",
    epilog="\b\nExamples:\n  ipvs-proxy doctor\n  ipvs-proxy doctor -o json\n",
)
@_shared
def doctor(agent: str, output: str) -> None:
    """Find what on this node keeps Services from working, or may; each problem comes with its remedy.

    It looks at the kernel's version, modules and settings, at iptables, at who else manages kube-ipvs0 or answers for
    its addresses, and at the limits of conntrack, and asks the agent. It changes nothing, and needs root.

    Exit status: 0 if there is no problem (a warning is none), 2 if there is one, 1 if this node cannot be examined.
    """
    from ipvs_proxy.commands.doctor import doctor as examine  # noqa: PLC0415

    sys.exit(examine(agent, output))


@click.command(
    "debug-bundle",
    short_help="Write one archive for whoever is to find a fault.",
    epilog="\b\nExamples:\n  ipvs-proxy debug-bundle\n  ipvs-proxy debug-bundle /tmp/node-7.tar.gz\n",
)
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@_agent_option
def debug_bundle(file: Path | None, agent: str) -> None:
    """Write one archive with the agent's state, settings and metrics, and what the kernel says.

    It contains names and addresses of Services and endpoints, and no secret. What cannot be read (from an agent that
    does not answer, say) is named in the archive's missing.txt. FILE must not exist.

    Exit status: 0, or 1 if the archive cannot be written.
    """
    from ipvs_proxy.commands.bundle import write_bundle  # noqa: PLC0415

    try:
        click.echo(write_bundle(agent, file))
    except OSError as error:
        _fail(str(error))


@click.command(
    short_help="Print a completion script for a shell.",
    epilog='\b\nExamples:\n  eval "$(ipvs-proxy completion bash)"\n'
    "  ipvs-proxy completion fish > ~/.config/fish/completions/ipvs-proxy.fish\n",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that makes SHELL complete commands and flags of ipvs-proxy."""
    complete = get_completion_class(shell)
    root = context.find_root().command
    assert complete is not None  # noqa: S101  the choices above are those that click has
    click.echo(complete(root, {}, "ipvs-proxy", "_IPVS_PROXY_COMPLETE").source())
