"""Computes the desired kernel tables from Kubernetes objects: pure functions and values."""
