# kproxy-ebpf for a node: the daemon, and the compiler and kernel headers that it builds its programs with.
#
#   make image
#
# The kernel headers are Debian's, of any kernel: the programs use stable structures only, so one image serves all nodes.

FROM debian:12-slim AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-bpfcc libbpf1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /usr/share/doc /usr/share/man /usr/share/locale

# Debian splits the headers in two trees, of which the compiler wants the include folders, merged.
FROM base AS headers
RUN apt-get update \
 && apt-get install --yes --no-install-recommends "linux-headers-$(dpkg --print-architecture)" \
 && architecture="$(dpkg --print-architecture | sed 's/amd64/x86/')" \
 && for tree in /usr/src/linux-headers-*-common /usr/src/linux-headers-*-"$(dpkg --print-architecture)"; do \
      for folder in include "arch/$architecture/include"; do \
        mkdir --parents "/headers/$folder" && cp --recursive --dereference "$tree/$folder/." "/headers/$folder" || exit 1; \
      done; \
    done \
 && rm -rf /headers/include/config

FROM base AS python
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
RUN python3 -m venv --system-site-packages /opt/kproxy-ebpf
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY kproxy_ebpf kproxy_ebpf
RUN /opt/kproxy-ebpf/bin/pip install --no-cache-dir --disable-pip-version-check . \
 && /opt/kproxy-ebpf/bin/pip uninstall --yes --disable-pip-version-check pip setuptools

FROM base
ARG VERSION=unknown
LABEL org.opencontainers.image.title="kproxy-ebpf" \
      org.opencontainers.image.description="Kubernetes Services for pods, in tc-eBPF: a daemon beside kube-proxy" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0 AND GPL-2.0-only" \
      org.opencontainers.image.base.name="docker.io/library/debian:12-slim"
COPY --from=headers /headers /usr/share/kproxy-ebpf/headers
COPY --from=python /opt/kproxy-ebpf /opt/kproxy-ebpf
COPY bpf_src /usr/share/kproxy-ebpf/bpf_src
COPY LICENSE /usr/share/kproxy-ebpf/LICENSE
ENV BCC_KERNEL_SOURCE=/usr/share/kproxy-ebpf/headers \
    KPROXY_BPF_SOURCE=/usr/share/kproxy-ebpf/bpf_src \
    PATH=/opt/kproxy-ebpf/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["kproxy-ebpf"]
CMD ["--help"]
