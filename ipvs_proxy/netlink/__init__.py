"""Netlink without any knowledge of Services: bytes and messages, sockets, and the meaning of their failures."""
