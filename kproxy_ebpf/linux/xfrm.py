"""Whether the host encrypts what it forwards: IPsec policies, by netlink (linux/xfrm.h). pyroute2 does not speak it."""

from __future__ import annotations

import errno
import os
import socket
import struct

_NETLINK_XFRM = 6
_GET_POLICY = 0x15  # XFRM_MSG_GETPOLICY
_REQUEST_DUMP = 0x1 | 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_POLICY_ID = bytes(64)  # struct xfrm_userpolicy_id, which a dump does not read
_ABSENT = (errno.EPROTONOSUPPORT, errno.ECONNREFUSED, errno.EINVAL)
_RECEIVE_BYTES = 1 << 16


def has_policies() -> bool:
    """Of this network namespace; False where the kernel has no IPsec. Raises OSError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_XFRM) as handle:
            size = _HEADER.size + len(_POLICY_ID)
            handle.send(_HEADER.pack(size, _GET_POLICY, _REQUEST_DUMP, 0, 0) + _POLICY_ID)
            answer = handle.recv(_RECEIVE_BYTES)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _ERROR:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if number in _ABSENT:
            return False
        raise OSError(number, f"IPsec policies can't be read: {os.strerror(number)}")
    return bool(kind != _DONE)
