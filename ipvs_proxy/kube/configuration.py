"""The part of ``kubernetes_asyncio`` that reads configurations and credentials, imported without the rest of it.

Importing that package makes 700 classes for API groups and models, none of which the agent uses: 0.2 to 0.4 s of every
start and 40 MiB, a fifth of the memory of an agent with 10,000 Services (version 36.1, measured by itself). So while
the loader is imported, the two packages around it are stand-ins without content. A version that this does not fit is
imported whole.
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
        ImportError: if the library is not there.

    """
    if _LOADER not in sys.modules and _LIBRARY not in sys.modules:
        try:
            return _import_alone()
        except Exception:  # noqa: BLE001  whatever another version does with what is not there
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
        # What the loader wants of the client: its settings, and a name for annotations of functions that nobody calls.
        client.Configuration = import_module(f"{_CLIENT}.configuration").Configuration  # type: ignore[attr-defined]
        client.ApiClient = object  # type: ignore[attr-defined]
        return import_module(_LOADER)
    finally:
        # Whoever asks for the whole library gets it.
        for name in (_LIBRARY, _CLIENT):
            del sys.modules[name]
