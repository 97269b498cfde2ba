"""Kernels to try things in: what the tests, the demo and the benchmarks share."""
