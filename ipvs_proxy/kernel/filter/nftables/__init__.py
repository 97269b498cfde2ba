"""nf_tables: our table with its sets and rules; and the table of kube-proxy's nftables mode."""
