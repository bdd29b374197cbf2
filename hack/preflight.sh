#!/usr/bin/env bash
# Say in one sentence why this machine can't run BPF programs, or nothing. `kproxy-ebpf check` goes into the details.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

((EUID == 0)) || die "loading BPF programs and making network namespaces needs root: run this as root (sudo make ...)"
grep -qw bpf /proc/filesystems || die "this kernel has no BPF file system (CONFIG_BPF_SYSCALL): use Linux 5.10 or later with BPF"
[[ $(cat /proc/sys/kernel/osrelease) =~ ^([0-9]+)\.([0-9]+) ]]
((BASH_REMATCH[1] * 1000 + BASH_REMATCH[2] >= 5010)) || die "Linux ${BASH_REMATCH[0]} is too old: 5.10 or later is needed"
unshare --net true 2>/dev/null || die "network namespaces can't be made here: CAP_SYS_ADMIN is missing"
