"""The agent's iptables rules: rendering, comparing with the existing ones, writing and removing."""
