// SPDX-License-Identifier: GPL-2.0
/*
 * The table of contents, in reading order: a file uses only what stands above it. The loader splices the quoted
 * includes into this text (their paths are relative to this folder) and compiles the whole once per address family.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

/* What the programs share with the daemon and with one another. */
#include "contract.h"
#include "fragment/entry.h"
#include "tail_calls.h"
#include "maps.h"
#include "pod_link.h"

/* A packet: its headers, and how they are rewritten. */
#include "packet/parse.h"
#include "packet/rewrite.h"
#include "packet/sctp.h"
#include "packet/fragment.h"

/* A connection: its flow, and the backend of a Service that a flow leads to. */
#include "flow/flow.h"
#include "flow/create.h"
#include "service.h"

/* The path of a packet at a pod's link, from its tuple to a verdict and what the verdict does. */
#include "event.h"
#include "path/act.h"
#include "path/icmp_error.h"
#include "path/answer.h"
#include "path/pod_path.h"

/* A datagram in fragments: what was decided for the first one, and the path of those that follow. */
#include "fragment/table.h"
#include "fragment/path.h"

/* Forwarding: through the host's stack, or redirected. */
#include "forward/host_flow.h"
#include "forward/fib.h"
#include "forward/decide.h"
#include "forward/redirect.h"

/* Sockets of pods: the address of a call, and what a socket keeps of its peers. */
#include "socket/call.h"
#include "socket/peer.h"
#include "socket/list.h"

/* The programs, by the place where they are attached. */
#include "pod.c"
#include "uplink.c"
#include "cgroup.c"
