"""The CNI chain: what a plugin and the daemon say to each other, the node's list of plugins, the plugin's binary."""
