"""Questions about the host, apart from our tables: what it has, who is at work on it, its sysctls; and cleaning up."""
