"""From objects to the tables that the kernel should hold: pure functions and values."""
