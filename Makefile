# Everything there is to learn: make setup | demo | test | lint | bench. Each does its own set-up.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PACKAGES := python3-venv iptables ipset ipvsadm iproute2 kmod procps openssl nftables conntrack
MACHINE := linux-image-amd64 qemu-system-x86 busybox-static udev zstd cpio

.PHONY: help setup demo test lint bench
help:
	@echo "make demo    a client, a node and three pods on this host: requests through a ClusterIP, a pod that goes away"
	@echo "make test    all tests, also those that need a kernel with IPVS (in a virtual machine if this one has none)"
	@echo "make lint    style, types and the layers"
	@echo "make bench   one table of what a start and a change cost, next to ipvsadm -R (SIZES=\"100x10 1000x10\" for other sizes)"
	@echo "make setup   only what the others need: Debian packages (as root) and $(VENV)"

setup: .cache/packages $(VENV)/ready

.cache/packages: Makefile
	@mkdir -p .cache
	@missing=$$(for name in $(PACKAGES) $$( { modprobe ip_vs && modprobe dummy; } 2>/dev/null || echo $(MACHINE)); do \
	    [ "$$(dpkg-query -Wf '$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || echo $$name; done); \
	if [ -n "$$missing" ]; then \
	    echo "setup: installing the Debian packages" $$missing; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >.cache/apt.log \
	    || { echo "setup: apt-get failed (it needs root), see .cache/apt.log" >&2; exit 1; }; \
	fi
	@touch $@

$(VENV)/ready: pyproject.toml .cache/packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "setup: Python 3.11 or later is needed, this is " + sys.version)'
	@echo "setup: Python packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: setup
	$(RUN) -m pytest tests --ignore=tests/ring
	REQUIRE_RING=1 $(RUN) -m tests.ring.vm $(CURDIR)/$(RUN) -m pytest -p no:cacheprovider tests/ring

demo: setup
	@$(RUN) -m tests.ring.vm $(CURDIR)/$(RUN) -m demo

bench: setup bench/fill
	@$(RUN) -m bench $(SIZES)

bench/fill: bench/fill.c
	@command -v cc >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends gcc libc6-dev >.cache/apt.log
	cc -O2 -Wall -Wextra -o $@ $<
