"""The host's IPsec policies, by netlink (linux/xfrm.h). With them the host may encrypt what it forwards."""

from __future__ import annotations

import errno

from kproxy_ebpf.linux.netlink import Netlink

_NETLINK_XFRM = 6
_GET_POLICY = 0x15  # XFRM_MSG_GETPOLICY
_POLICY_ID = bytes(64)  # struct xfrm_userpolicy_id, which a dump does not read
_ABSENT = (errno.EPROTONOSUPPORT, errno.ECONNREFUSED, errno.EINVAL)


def has_policies() -> bool:
    """True if this network namespace has policies; False where the kernel has no IPsec. Raises OSError."""
    try:
        with Netlink(_NETLINK_XFRM, "IPsec policies can't be read") as netlink:
            return any(True for _ in netlink.dump(_GET_POLICY, _POLICY_ID))
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
