"""Generic netlink: a family of messages has a name, and the kernel gives it a number when it registers it.

The number is the ``nlmsg_type`` of the family's messages. Asking for it makes the kernel load the module that registers
the family (linux/genetlink.h). It is asked here and not through pyroute2 because it is the first question of a start,
which would wait 0.1 s for the import.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from ipvs_proxy.netlink.wire import Request, attributes, integer, text_attribute

#: struct genlmsghdr: command, version, reserved.
GENERIC_HEADER: Final = Struct("=BBxx")

#: The controller, whose own number is fixed (``GENL_ID_CTRL``), and what it is asked here (``CTRL_CMD_GETFAMILY``).
_CONTROLLER: Final = 0x10
_GET_FAMILY: Final = 3
_VERSION: Final = 1
# CTRL_ATTR_*
_FAMILY_ID: Final = 1
_FAMILY_NAME: Final = 2


def encode_get_family(name: str) -> Request:
    """Return the request for the number of a family."""
    return Request(_CONTROLLER, GENERIC_HEADER.pack(_GET_FAMILY, _VERSION) + text_attribute(_FAMILY_NAME, name))


def decode_family(payload: bytes) -> int:
    """Read the answer to ``encode_get_family``.

    Raises:
        MalformedMessage: if it is not such an answer.

    """
    return integer(attributes(payload, GENERIC_HEADER.size), _FAMILY_ID)
