"""What shows the agent at work: metrics, health, logs, history, events."""
