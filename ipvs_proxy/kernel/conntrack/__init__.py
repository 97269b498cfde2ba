"""Connection tracking: the flows whose endpoint is gone are deleted."""
