"""What keys and values are made of: addresses as packed bytes, ports in network byte order, plain numbers."""

from __future__ import annotations

from ctypes import Array, c_uint8, c_uint16
from struct import Struct

be16 = c_uint16.__ctype_be__

U32 = Struct("=I")

"""A key or value that is one number: an index, an id, a descriptor."""

Address = type[Array[c_uint8]]
"""The type of an address of one family."""


def address_bytes(family: int) -> int:
    """Size of an address in bytes: 4 or 16."""
    return {4: 4, 6: 16}[family]


def address_type(family: int) -> Address:
    return c_uint8 * address_bytes(family)
