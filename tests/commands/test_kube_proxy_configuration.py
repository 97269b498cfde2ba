"""How a configuration is read from standard input."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ipvs_proxy.commands.kube_proxy_configuration import read_until_end

CONFIGURATION = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


@pytest.mark.parametrize(
    ("pieces", "ends", "text"),
    [
        ([CONFIGURATION], True, CONFIGURATION),
        ([CONFIGURATION, "...\n"], False, CONFIGURATION),
        ([CONFIGURATION[:-1], "\n.", "..\nnever: read\n"], False, CONFIGURATION),
        ([f"{CONFIGURATION}a: ...b\n...c\n"], True, f"{CONFIGURATION}a: ...b\n...c\n"),
    ],
)
def test_document_ends_with_its_input_or_with_three_dots(pieces: list[str], ends: bool, text: str) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        for piece in pieces:
            os.write(writing, piece.encode())
        if ends:
            os.close(writing)

    writer = threading.Thread(target=write)
    writer.start()
    assert read_until_end(reading, 30.0) == text
    writer.join()
    os.close(reading)
    if not ends:
        os.close(writing)


def test_input_that_neither_ends_nor_goes_on_is_given_up() -> None:
    reading, writing = os.pipe()
    os.write(writing, CONFIGURATION.encode())
    with pytest.raises(ValueError, match="has not ended: end it with a line of three dots"):
        read_until_end(reading, 0.05)
    os.close(writing)
    os.close(reading)
    with Path("/dev/zero").open("rb") as endless, pytest.raises(ValueError, match="more than 4,194,304 bytes"):
        read_until_end(endless.fileno(), 1.0)
