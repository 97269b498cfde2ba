"""Network and mount namespaces for the thread that asks; ``os.unshare`` and ``os.setns`` came with Python 3.12."""

from __future__ import annotations

import ctypes
import os

#: ``linux/sched.h``: CLONE_NEWNET and CLONE_NEWNS.
NETWORK, MOUNT = 0x40000000, 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


def unshare(kinds: int) -> None:
    """Move this thread into new namespaces of these kinds: ``NETWORK``, ``MOUNT`` or both.

    Raises OSError if the kernel refuses.
    """
    _check(_libc.unshare(kinds))


def enter_network(descriptor: int) -> None:
    """Move this thread into the network namespace that an open file stands for.

    Raises OSError if the kernel refuses.
    """
    _check(_libc.setns(descriptor, NETWORK))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
