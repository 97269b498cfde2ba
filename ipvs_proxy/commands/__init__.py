"""All commands except the agent itself: each one queries the agent or inspects this node, and prints the result."""
