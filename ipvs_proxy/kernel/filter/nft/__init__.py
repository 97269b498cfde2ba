"""nf_tables over netlink: for now only the table of kube-proxy's nftables mode."""
