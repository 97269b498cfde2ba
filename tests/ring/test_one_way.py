"""Datagrams that nobody answers: every one of them is the first of its flow, for whoever asks for the flow's state."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lab import manifests
from lab.agent import running_agent
from lab.manifests import PORTS, TARGET_PORTS, endpoint
from lab.topology import ADDRESSES, topology

VIP, OUTSIDE = "10.96.0.50", "203.0.113.50"
COUNT = 5


@pytest.mark.parametrize("place", ["node", "pod1"])
def test_all_reach_an_endpoint_elsewhere_with_policy_local(tmp_path: Path, place: str) -> None:
    manifests.write(tmp_path, "node", manifests.node())
    service = manifests.service(
        "log", VIP, protocols=("UDP",), type="LoadBalancer", externalTrafficPolicy="Local", ingress=[OUTSIDE]
    )
    slices = manifests.slices("log", [endpoint(ADDRESSES["pod4"]["IPv4"], "peer")], ("UDP",))
    manifests.write(tmp_path, "log", service, *slices)
    with topology() as net:
        with net.inside("pod4"):
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind((ADDRESSES["pod4"]["IPv4"], TARGET_PORTS["UDP"]))
        with server, running_agent(net, tmp_path), net.inside(place):
            server.settimeout(10)
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with client:
                client.connect((OUTSIDE, PORTS["UDP"]))
                for number in range(COUNT):
                    client.send(b"%d" % number)
                    assert server.recv(16) == b"%d" % number
