"""Benchmarks: what a start and a change cost, and what many agents ask of an API server."""
