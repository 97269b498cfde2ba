"""IPVS: its virtual servers and real servers, and what they do, over generic netlink."""
