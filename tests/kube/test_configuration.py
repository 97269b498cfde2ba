"""The loader of configurations is imported without the library around it."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOAD = "from ipvs_proxy.kube.configuration import import_loader; loader = import_loader(); import sys; "
CHECK = "assert callable(loader.load_kube_config) and loader.kube_config.Configuration(host='').host == ''; "


@pytest.mark.parametrize(
    ("before", "then"),
    [
        pytest.param("", "assert not [n for n in sys.modules if n.startswith('kubernetes_asyncio.client.models')]"),
        pytest.param(
            "",
            "import kubernetes_asyncio; from kubernetes_asyncio.client import V1Pod; "
            "assert kubernetes_asyncio.config is loader",
            id="the whole library can be imported later",
        ),
        pytest.param(
            "import kubernetes_asyncio; ",
            "assert loader is sys.modules['kubernetes_asyncio'].config",
            id="the whole library is there already",
        ),
        pytest.param(
            "import sys; sys.modules['kubernetes_asyncio.client.configuration'] = None; "
            "import ipvs_proxy.kube.configuration; ",
            "assert 'kubernetes_asyncio.client.models' in sys.modules",
            id="a version with another layout is imported whole",
        ),
        pytest.param(
            "import ipvs_proxy.kube.configuration as c; c.ModuleType = lambda name: object(); ",
            "assert 'kubernetes_asyncio.client.models' in sys.modules",
            id="so is one that does something else with what is not there",
        ),
    ],
)
def test_loader_is_there(before: str, then: str) -> None:
    subprocess.run([sys.executable, "-c", before + LOAD + CHECK + then], check=True)
