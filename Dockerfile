# kproxy-ebpf for a node: the daemon, and its programs for every kernel. They are compiled here, so that no node needs a
# compiler, and none is in the image.
#
#   make image
#
# Compiling takes no privilege, and nothing of the kernel that it runs on. The kernel headers are Debian's, of any kernel:
# the programs use stable structures only.

FROM debian:12-slim AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 libbpf1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /usr/share/doc /usr/share/man /usr/share/locale

FROM base AS python
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
RUN python3 -m venv --system-site-packages /opt/kproxy-ebpf
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY kproxy_ebpf kproxy_ebpf
RUN /opt/kproxy-ebpf/bin/pip install --no-cache-dir --disable-pip-version-check . \
 && /opt/kproxy-ebpf/bin/pip uninstall --yes --disable-pip-version-check pip setuptools

FROM python AS programs
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-bpfcc "linux-headers-$(dpkg --print-architecture)"
COPY bpf_src /usr/share/kproxy-ebpf/bpf_src
RUN KPROXY_BPF_SOURCE=/usr/share/kproxy-ebpf/bpf_src /opt/kproxy-ebpf/bin/kproxy-ebpf compile --output /compiled

FROM debian:12-slim AS plugin
RUN apt-get update && apt-get install --yes --no-install-recommends gcc musl-tools
WORKDIR /source
COPY cni/plugin.c cni/
COPY hack/cni-plugin.sh hack/
RUN hack/cni-plugin.sh /kproxy-ebpf-cni

FROM base
ARG VERSION=unknown
LABEL org.opencontainers.image.title="kproxy-ebpf" \
      org.opencontainers.image.description="Kubernetes Services for pods, in tc-eBPF: a daemon beside kube-proxy" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-only" \
      org.opencontainers.image.base.name="docker.io/library/debian:12-slim"
COPY --from=python /opt/kproxy-ebpf /opt/kproxy-ebpf
COPY --from=programs /compiled /usr/share/kproxy-ebpf/compiled
COPY --from=plugin /kproxy-ebpf-cni /usr/share/kproxy-ebpf/cni/kproxy-ebpf-cni
COPY bpf_src /usr/share/kproxy-ebpf/bpf_src
COPY LICENSE /usr/share/kproxy-ebpf/LICENSE
ENV KPROXY_BPF_SOURCE=/usr/share/kproxy-ebpf/bpf_src \
    PATH=/opt/kproxy-ebpf/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["kproxy-ebpf"]
CMD ["--help"]
