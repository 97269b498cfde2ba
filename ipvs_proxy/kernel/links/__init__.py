"""Addresses: those of ``kube-ipvs0``, those of the host, and what changes them."""
