"""The host outside the agent's tables: its features, the agent's requirements, other proxies on it, and cleanup."""
