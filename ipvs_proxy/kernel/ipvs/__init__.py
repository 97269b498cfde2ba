"""IPVS's virtual servers and real servers, over generic netlink."""
