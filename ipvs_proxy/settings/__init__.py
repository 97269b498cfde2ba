"""Flags and the fields of a configuration file: what there is, how it is read, merged, checked and written."""
