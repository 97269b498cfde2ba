"""Reads Kubernetes objects from the API (or from manifest files) and decodes them."""
