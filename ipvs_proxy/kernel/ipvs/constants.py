"""What linux/ip_vs.h and linux/genetlink.h number: commands and attributes of IPVS over generic netlink.

The names are the header's without ``IPVS_`` and ``ATTR``. The kernel says *service* where ipvsadm and this project say
virtual server, and *destination* where they say real server.
"""

from __future__ import annotations

from typing import Final

#: The generic-netlink family's name, and the version of its commands (``IPVS_GENL_NAME``, ``IPVS_GENL_VERSION``).
FAMILY_NAME: Final = "IPVS"
VERSION: Final = 1

# enum: IPVS_CMD_*
NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE = range(1, 5)
NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = range(5, 9)
SET_CONFIG, GET_CONFIG = 12, 13
GET_INFO: Final = 15

# enum: IPVS_CMD_ATTR_*
SERVICE, DEST = 1, 2
TIMEOUT_TCP, TIMEOUT_TCP_FIN, TIMEOUT_UDP = range(4, 7)

# enum: IPVS_SVC_ATTR_*
SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_FWMARK, SVC_SCHED_NAME, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK = range(1, 10)

# enum: IPVS_DEST_ATTR_*
DEST_ADDR, DEST_PORT, DEST_FWD_METHOD, DEST_WEIGHT, DEST_U_THRESH, DEST_L_THRESH = range(1, 7)
DEST_ACTIVE_CONNS, DEST_INACT_CONNS, DEST_PERSIST_CONNS = range(7, 10)
DEST_ADDR_FAMILY: Final = 11
DEST_TUN_TYPE, DEST_TUN_PORT, DEST_TUN_FLAGS = range(13, 16)

#: Statistics, numbered alike for both. Before Linux 4.1 there is only the first, which has 32 bits for connections and
#: packets.
STATS: Final = 10
STATS64: Final = 12
#: enum: IPVS_STATS_ATTR_*. Totals and rates each second, both of connections, packets in and out, bytes in and out.
#: 11 is padding where a kernel aligns to 8 bytes.
STATS_TOTALS: Final = range(1, 6)
STATS_RATES: Final = range(6, 11)

# enum: IPVS_INFO_ATTR_*
INFO_VERSION: Final = 1

FORWARDING_MASK: Final = 0x7  # IP_VS_CONN_F_FWD_MASK
SCHEDULER_LENGTH: Final = 15  # IP_VS_SCHEDNAME_MAXLEN without the final zero
