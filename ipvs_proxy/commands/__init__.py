"""All commands but the agent itself: each asks the agent, or looks at this node, and prints."""
