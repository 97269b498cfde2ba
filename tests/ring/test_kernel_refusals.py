"""Without the capability NET_ADMIN every part of the netlink layer says so in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.namespaces import fresh_namespace, missing_piece

pytestmark = pytest.mark.skipif(missing_piece() is not None, reason=str(missing_piece()))

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("from ipvs_proxy.kernel.ipvs.table import Ipvs; Ipvs()", "IPVS may not be read or written"),
        ("from ipvs_proxy.kernel.filter.ipset.table import Sets; Sets([])", "ipsets may not be read or written"),
        (
            "from ipvs_proxy.kernel.conntrack.table import Conntrack; Conntrack().read(2, 17, keep=bool)",
            "tracked flows may not be read or deleted",
        ),
        (
            "from ipvs_proxy.kernel.links.addresses import Addresses; Addresses().ensure_link()",
            "the link kube-ipvs0 may not be made",
        ),
    ],
)
def test_a_process_without_net_admin_is_told_what_it_lacks(attempt, refusal):
    program = f"""
import sys
from ipvs_proxy.netlink.errors import MissingPiece
try:
    {attempt}
except MissingPiece as error:
    sys.exit(str(error))
"""
    with fresh_namespace():
        done = subprocess.run(
            ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.stderr.strip() == f"{refusal}: run as root with the capability CAP_NET_ADMIN"
    assert done.returncode == 1
