"""One row of the table of settings: a setting's field, flag, kind, default and help, in one statement.

A setting that the agent uses is a field of ``Settings``, declared with ``row``; one that is only accepted is a
``Setting`` of its own. Flags, fields of the file, checks, ``--help``, ``docs/configuration.md`` and ``/configz`` all
derive from these rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, TypeVar

from ipvs_proxy.settings.values import Kind

T = TypeVar("T")

#: The key of a row in the metadata of a dataclass field.
ROW: Final = "row"


class DocumentKind(NamedTuple):
    """One kind of document of a configuration file."""

    api_version: str
    kind: str


KUBE_PROXY: Final = DocumentKind("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")
OWN: Final = DocumentKind("ipvs-proxy.io/v1alpha1", "IpvsProxyConfiguration")


class Group(StrEnum):
    """The groups of settings, by their headings in ``--help`` and the documentation, in that order."""

    OBJECTS = "Where the objects come from"
    BALANCING = "Balancing"
    MASQUERADING = "Masquerading"
    CONNECTION_TRACKING = "Connection tracking"
    SERVERS = "Health and metrics"
    LOGS = "Logs"
    COMPATIBILITY = "Compatibility"
    ACCEPTED = "Accepted as kube-proxy's, without effect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table.

    ``name`` is the field of ``Settings``. ``field`` is the place in ``document`` (empty: flag only) and ``flag`` the
    flag (empty: field only). ``default`` is written as on the command line; ``file_default`` is what counts instead
    where a file is given that does not set the field. Where ``zero_is_default``, 0 means the default, as it does for
    some durations of kube-proxy.

    A file replaces flags, except those that ``outrank_file``. A ``live`` setting follows a changed file without a
    restart. ``without_effect`` says why a setting of kube-proxy is accepted and does nothing here.
    """

    name: str
    group: Group
    field: str
    flag: str
    kind: Kind[object]
    default: str
    help: str
    document: DocumentKind = KUBE_PROXY
    file_default: str | None = None
    zero_is_default: bool = False
    outranks_file: bool = False
    live: bool = False
    hidden: bool = False
    without_effect: str = ""

    @property
    def path(self) -> str:
        """The field with the kind of its document in front, as error messages have it; empty for a flag only."""
        return f"{self.document.kind}.{self.field}" if self.field else ""


def row(
    group: Group,
    field_in_file: str,
    flag: str,
    kind: Kind[T],
    default: str,
    help: str,  # noqa: A002  as argparse and click call it
    *,
    document: DocumentKind = KUBE_PROXY,
    file_default: str | None = None,
    zero_is_default: bool = False,
    outranks_file: bool = False,
    live: bool = False,
    hidden: bool = False,
) -> T:
    """Declare a field of ``Settings`` with its row: the parameters are those of ``Setting``.

    The field's default is what ``kind`` reads from ``default``. The result is typed as that value, as with
    ``dataclasses.field``, so that mypy refuses a field of another type than its kind reads.
    """
    setting = Setting(
        name="",  # the field's, which is known when the class is made
        group=group,
        field=field_in_file,
        flag=flag,
        kind=kind,
        default=default,
        help=help,
        document=document,
        file_default=file_default,
        zero_is_default=zero_is_default,
        outranks_file=outranks_file,
        live=live,
        hidden=hidden,
    )
    return field(default_factory=lambda: kind.read(default), metadata={ROW: setting})
