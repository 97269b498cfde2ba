"""Manifest files as ``kubectl get -o json`` prints them, for agents that run in a topology."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lab.topology import ADDRESSES, POD_CIDRS

PORTS = {"TCP": 80, "UDP": 53, "SCTP": 132}
TARGET_PORTS = {"TCP": 8080, "UDP": 8053, "SCTP": 8132}


def write(directory: Path, name: str, *items: dict[str, Any]) -> None:
    """Write objects as one file with a List, by rename, as editors and volumes do."""
    scratch = directory / f".{name}.tmp"
    scratch.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(items)}))
    scratch.replace(directory / f"{name}.json")


def node(name: str = "node") -> dict[str, Any]:
    """Return the node's Node, with its addresses and the networks of its pods."""
    addresses = [{"type": "InternalIP", "address": address} for address in ADDRESSES["node"].values()]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": list(POD_CIDRS.values())},
        "status": {"addresses": addresses},
    }


def service(
    name: str,
    *addresses: str,
    protocols: tuple[str, ...] = ("TCP",),
    affinity: int = 0,
    node_ports: dict[str, int] | None = None,
    ingress: Iterable[str] = (),
    **spec_fields: Any,
) -> dict[str, Any]:
    """Return a Service, dual-stack if it has two addresses; its port names are the protocols.

    ``spec_fields`` are further fields of the spec under their API names.
    """
    spec: dict[str, Any] = {
        "type": "ClusterIP",
        "clusterIP": addresses[0],
        "clusterIPs": list(addresses),
        "ipFamilies": ["IPv6" if ":" in address else "IPv4" for address in addresses],
        "ports": [
            {"name": p.lower(), "protocol": p, "port": PORTS[p], "nodePort": (node_ports or {}).get(p, 0)}
            for p in protocols
        ],
        **spec_fields,
    }
    if affinity:
        spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": affinity}}}
    metadata = {"name": name, "namespace": "ring", "creationTimestamp": "2026-01-01T00:00:00Z"}
    status = {"loadBalancer": {"ingress": [{"ip": address} for address in ingress]}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}


def endpoint(address: str, node_name: str = "node", **conditions: bool) -> dict[str, Any]:
    """Return an endpoint of an EndpointSlice, ready unless ``conditions`` are given."""
    return {"addresses": [address], "nodeName": node_name, "conditions": conditions or {"ready": True}}


def slices(name: str, endpoints: list[dict[str, Any]], protocols: tuple[str, ...] = ("TCP",)) -> list[dict[str, Any]]:
    """Return the EndpointSlices of a Service, one for each family that has an endpoint."""
    result = []
    for family, colon in (("IPv4", False), ("IPv6", True)):
        of_family = [e for e in endpoints if (":" in e["addresses"][0]) == colon]
        if of_family:
            result.append(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": f"{name}-{family.lower()}",
                        "namespace": "ring",
                        "labels": {"kubernetes.io/service-name": name},
                    },
                    "addressType": family,
                    "ports": [{"name": p.lower(), "protocol": p, "port": TARGET_PORTS[p]} for p in protocols],
                    "endpoints": of_family,
                }
            )
    return result
