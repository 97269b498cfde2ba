"""What tests, demo and benchmarks share: kernels with IPVS to run in, and a small cluster to run there.

Kernels: ``machine`` chooses one; ``build`` and ``native`` are Linux as a program, ``emulated`` is Debian's in a virtual
machine. The cluster: ``topology`` is network namespaces, ``manifests`` its objects, ``agent`` a process on its node,
``witness`` what independent tools say of the result.
"""
