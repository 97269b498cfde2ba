"""The loops that keep the kernel in line with the Kubernetes objects."""
