"""Observability of the agent: metrics, health, logs, history, events."""
