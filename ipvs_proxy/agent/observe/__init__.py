"""What tells of the agent at work: metrics, health, logs, history, events."""
