"""Masquerading and filtering of packets: rules, and the sets that they refer to."""
