"""Links and addresses: ``kube-ipvs0``, the host's own addresses, and notifications of their changes."""
