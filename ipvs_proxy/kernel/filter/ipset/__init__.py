"""The ipset layer: names, netlink messages, and the tables that they carry."""
