"""The flow tables as records, their sweep, and the UDP flows of the host that are taken over."""
