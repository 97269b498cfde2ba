"""The loops that keep the kernel as the objects want it."""
