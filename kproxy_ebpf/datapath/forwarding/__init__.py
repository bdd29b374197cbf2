"""The tables of `forwarding: redirect`: pods, cluster networks, uplinks, and what the host's conntrack follows."""
