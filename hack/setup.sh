#!/usr/bin/env bash
# Make this checkout usable on Debian 12: packages, a virtual environment, the project inside it.
#
#   hack/setup.sh        what `kproxy-ebpf` itself needs
#   hack/setup.sh dev    the tools of the tests too
#   hack/setup.sh bench  what is measured against, too
#
# Only what is missing is installed: a second run needs neither the network nor root, and takes a moment.
set -euo pipefail
cd "$(dirname "$0")/.."
. hack/lib.sh

python=/usr/bin/python3 # Debian's: the bcc module is built for this one only
packages=(python3-venv python3-bpfcc libbpf1 iproute2)
packages+=(gcc musl-tools) # the CNI plugin
extra=""
if [[ ${1:-} == dev || ${1:-} == bench ]]; then
    packages+=(bpftool conntrack nftables iptables openssl libc6-dev ca-certificates)
    packages+=(curl bind9-dnsutils dnsmasq-base iputils-ping nginx redis-tools) # real programs that the tests let talk to Services
    packages+=(containernetworking-plugins)            # wires pods as on a cluster
    extra="[dev]"
fi
if [[ ${1:-} == bench ]]; then
    packages+=(nginx-light apache2-utils iperf3)
fi

install_packages() {
    command -v dpkg-query >/dev/null ||
        die "this is not Debian: install Python 3.11, BCC for it, libbpf, iproute2 and kernel headers, then make .venv by hand, with --system-site-packages"
    packages+=("linux-headers-$(dpkg --print-architecture)")
    local installed missing=() package
    installed=" $(dpkg-query -W -f '${db:Status-Abbrev}${Package} ' 2>/dev/null | sed 's/ii  */ /g') "
    for package in "${packages[@]}"; do
        [[ $installed == *" $package "* ]] || missing+=("$package")
    done
    ((${#missing[@]} == 0)) && return
    grep -q '^ID=debian$' /etc/os-release ||
        die "the packages ${missing[*]} are missing and have other names outside Debian: install their counterparts first"
    ((EUID == 0)) || die "packages are missing, and only root can install them: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # no service of theirs is started
    apt-get -o DPkg::Lock::Timeout=300 update || die "apt-get update failed: is the network reachable?"
    apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends "${missing[@]}" ||
        die "apt-get could not install ${missing[*]}"
}

# The environment is bound to what it was made from: its path, the interpreter, and the dependencies.
stamp_of() {
    local digest
    digest=$({ pwd; "$python" --version; cat pyproject.toml; } | sha256sum | cut -c1-16)
    echo ".venv/.installed$1-$digest"
}

install_project() {
    local wanted
    wanted=$(stamp_of "$extra")
    [[ -e $wanted || -e $(stamp_of "[dev]") ]] && [[ -x .venv/bin/kproxy-ebpf ]] && return
    [[ -w . ]] || die "$PWD is not writable for $(id -un): run this as the owner of the checkout"
    if ! .venv/bin/python -c '' 2>/dev/null || [[ $(.venv/bin/python -c 'import sys; print(sys.prefix)') != "$PWD/.venv" ]]; then
        say "making .venv"
        rm -rf .venv
        "$python" -m venv --system-site-packages .venv
    fi
    with_heartbeat "installing the project and what it depends on into .venv" \
        .venv/bin/pip install --disable-pip-version-check --no-input --quiet -e ".$extra" ||
        die "pip could not install what pyproject.toml names: its words are above; is the package index reachable?"
    rm -f .venv/.installed*
    touch "$wanted"
}

build_plugin() {
    [[ cni/kproxy-ebpf-cni -nt cni/plugin.c ]] || hack/cni-plugin.sh
}

install_packages
install_project
build_plugin
say "ready: .venv/bin/kproxy-ebpf"
