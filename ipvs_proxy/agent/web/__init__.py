"""The HTTP servers: probes, metrics, the state of the node, and the web page."""
