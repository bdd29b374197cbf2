"""What the kernel says and does: system calls, netlink, namespaces. Nothing here knows a map of ours."""
