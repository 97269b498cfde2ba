"""The iptables rules: rendered, compared with what is there, written, removed."""
