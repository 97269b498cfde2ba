# The image of ipvs-proxy: Debian with Python, iptables and nft, and one virtual environment. `make image` builds it, tests
# it and lists what is in it; any other builder takes it too (buildah bud ., docker build .).
ARG BASE=debian:trixie-slim

# First stage: the environment, from wheels with known hashes. Nothing is compiled but byte code.
FROM ${BASE} AS build
# For a proxy that ends TLS: a file with the certificates to trust, mounted into the build.
ARG PIP_CERT
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ca-certificates python3 python3-venv
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /build \
    && python3 -m venv --without-pip /opt/ipvs-proxy \
    && /build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements-build.lock \
    && /build/bin/pip --python /opt/ipvs-proxy/bin/python install --no-cache-dir --no-compile --require-hashes \
        --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY ipvs_proxy ipvs_proxy
# Of the dependencies' own programs none stays.
RUN rm -f /opt/ipvs-proxy/bin/[!p]* /opt/ipvs-proxy/bin/p[!y]* /opt/ipvs-proxy/bin/pyroute2* \
    && /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/ipvs-proxy/bin/python install --no-compile --no-index --no-deps /wheels/*.whl \
    && /build/bin/pip --python /opt/ipvs-proxy/bin/python check

# Last stage: no compiler, no pip, no setuptools.
FROM ${BASE}
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="ipvs-proxy" \
      org.opencontainers.image.description="The successor of kube-proxy's IPVS mode: keeps a node's IPVS table right" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# iptables has both variants, nf_tables and legacy, and nftables is for nodes that have neither iptables nor ipset: which
# one is used follows the node. One image for all, as nft takes no more than 1.5 MB. kmod is for --init-only.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends ca-certificates iptables kmod \
        nftables python3 \
    && mkdir -p /usr/lib/modules \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /tmp/*
COPY --from=build /opt/ipvs-proxy /opt/ipvs-proxy
# The root file system is read-only when it runs, so all byte code is made here, and it holds whatever time a builder
# gives to the files (the usual kind is valid only beside a source of the same time).
RUN python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3* /opt/ipvs-proxy/lib
ENV PATH=/opt/ipvs-proxy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Root with CAP_NET_ADMIN and no other capability; the container gets no others from the chart.
ENTRYPOINT ["ipvs-proxy"]
