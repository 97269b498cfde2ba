"""ipvs-proxy: keeps a node's IPVS table in line with the Services of a Kubernetes cluster."""

__version__ = "0.1.0"
