"""Flags and configuration file fields: which ones exist, and how they are read, merged, validated and written."""
