"""nf_tables over netlink: so far only the table of kube-proxy's nftables mode."""
