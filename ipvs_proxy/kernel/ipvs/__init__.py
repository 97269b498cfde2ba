"""IPVS over generic netlink: virtual servers, real servers, and their activity."""
