"""The BPF side: building, loading, attaching, reading and writing."""
