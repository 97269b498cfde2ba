"""Packet masquerading and filtering: rules, and the sets that they refer to."""
