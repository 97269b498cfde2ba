"""Imports the part of ``kubernetes_asyncio`` that reads configurations and credentials, without the rest of it.

The agent decodes objects itself and uses nothing else of that library. But importing any part of it runs its two
``__init__.py`` files, which import every API group and model. In the agent's process, that is 1,043 modules, 1.9 s of
CPU time and 56 MiB. The part alone is 51 modules, 0.04 s and 2 MiB (version 36.1.0, Python 3.11). The library has no
lazy imports (its issue 293 discusses them). ``importlib.util.LazyLoader`` does not help, because the part immediately
imports two names from the package, which loads all of it.

So empty modules stand in for the two enclosing packages while the loader is imported. They are removed afterwards, and
a later import of the library loads all of it. A version that this does not work with is imported whole.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

_LIBRARY: Final = "kubernetes_asyncio"
_CLIENT: Final = f"{_LIBRARY}.client"
_LOADER: Final = f"{_LIBRARY}.config"


def import_loader() -> Any:
    """Return the module ``kubernetes_asyncio.config``.

    Raises:
        ImportError: the library is not installed.

    """
    if _LOADER not in sys.modules and _LIBRARY not in sys.modules:
        try:
            return _import_alone()
        except Exception:  # noqa: BLE001  another version may raise anything about the missing parts
            for name in [name for name in sys.modules if name.startswith(f"{_LIBRARY}.")]:
                del sys.modules[name]
    return sys.modules.get(_LOADER) or import_module(_LOADER)


def _import_alone() -> ModuleType:
    found = find_spec(_LIBRARY)
    places = [] if found is None else list(found.submodule_search_locations or ())
    library, client = ModuleType(_LIBRARY), ModuleType(_CLIENT)
    library.__path__, client.__path__ = places, [f"{place}/client" for place in places]
    sys.modules |= {_LIBRARY: library, _CLIENT: client}
    try:
        # All that the loader needs from the client: its settings, and a name in annotations of functions not used here.
        client.Configuration = import_module(f"{_CLIENT}.configuration").Configuration  # type: ignore[attr-defined]
        client.ApiClient = object  # type: ignore[attr-defined]
        return import_module(_LOADER)
    finally:
        # A later import of the library must load all of it.
        for name in (_LIBRARY, _CLIENT):
            del sys.modules[name]
