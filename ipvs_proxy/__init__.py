"""ipvs-proxy: keeps a node's IPVS table as the Services of a Kubernetes cluster ask for."""

__version__ = "0.1.0"
