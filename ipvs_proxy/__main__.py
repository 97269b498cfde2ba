"""``python -m ipvs_proxy`` is the same as ``ipvs-proxy``."""

from ipvs_proxy.cli import main

if __name__ == "__main__":
    main()
