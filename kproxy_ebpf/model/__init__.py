"""What the cluster is: frozen, slotted objects without I/O. Addresses are packed bytes (4 or 16)."""
