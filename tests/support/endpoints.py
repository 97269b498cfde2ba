"""Endpoints for the tests that read, cache and choose them."""

from __future__ import annotations

from hypothesis import strategies as st

from ipvs_proxy.kube.objects import Endpoint as SliceEndpoint
from ipvs_proxy.kube.objects import EndpointSlice
from ipvs_proxy.plan.endpoints import Endpoints, Gathered, PortKey, State, gather
from ipvs_proxy.plan.tables import Family, Protocol
from tests.support.objects import endpoint, endpoint_slice

NODE, OTHER = "node-a", "node-b"
ZONE = "zone-a"
HTTP = PortKey("http", Protocol.TCP)

GONE = {"ready": False, "serving": False, "terminating": True}
DRAINING = {"ready": False, "serving": True, "terminating": True}
UNREADY = {"ready": False, "serving": False, "terminating": False}


def gathered(*pieces: EndpointSlice, family: Family = Family.IPV4, node: str = NODE) -> Gathered:
    return gather(pieces, family, node)


def only(*endpoints: SliceEndpoint) -> Endpoints:
    """Return the endpoints of one slice, in the form that choices are made from."""
    return gathered(endpoint_slice(*endpoints)).endpoints.get(HTTP, {})


def the_state(*pieces: EndpointSlice) -> State:
    """Return the state of the only endpoint."""
    (state,) = gathered(*pieces).endpoints[HTTP].values()
    return state


def near(number: int, **more: object) -> SliceEndpoint:
    return endpoint(f"10.0.0.{number}", node=NODE, **more)  # type: ignore[arg-type]


def far(number: int, **more: object) -> SliceEndpoint:
    return endpoint(f"10.0.0.{number}", node=OTHER, **more)  # type: ignore[arg-type]


some_endpoints = st.lists(
    st.builds(
        endpoint,
        st.integers(1, 40).map("10.0.0.{}".format),
        ready=st.sampled_from([None, True, False]),
        serving=st.sampled_from([None, True, False]),
        terminating=st.sampled_from([None, True, False]),
        node=st.sampled_from([None, NODE, OTHER]),
        zones=st.none() | st.lists(st.sampled_from(["zone-a", "zone-b"]), max_size=2),
        nodes=st.none() | st.lists(st.sampled_from([NODE, OTHER]), max_size=2),
    ),
    max_size=12,
)
