"""Netlink without any knowledge of Services: bytes and messages, sockets, and what their failures mean."""
