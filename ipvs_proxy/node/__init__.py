"""The host apart from our tables: what it has, what the agent requires of it, who else runs on it; and cleaning up."""
