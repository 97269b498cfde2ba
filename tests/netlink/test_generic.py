"""Generic netlink's controller: golden bytes, and garbage."""

from __future__ import annotations

import contextlib
import sys
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvs_proxy.netlink.generic import decode_family, encode_get_family
from ipvs_proxy.netlink.wire import MalformedMessage, attribute


@pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are those of little-endian hosts")
def test_golden_bytes():
    request = encode_get_family("IPVS")
    assert (request.type, request.flags) == (0x10, 1)
    assert request.payload.hex() == "03010000090002004950565300000000"


def test_the_number_of_a_family():
    assert decode_family(bytes(4) + attribute(2, b"IPVS\0") + attribute(1, pack("=H", 0x22))) == 0x22


@pytest.mark.parametrize("payload", [b"", bytes(4), bytes(4) + attribute(1, b"\0\0\0")])
def test_what_is_no_answer_is_malformed(payload):
    with pytest.raises(MalformedMessage):
        decode_family(payload)


@given(st.binary(max_size=80))
def test_garbage_is_read_or_malformed(payload):
    with contextlib.suppress(MalformedMessage):
        decode_family(payload)
