"""Where the cluster state comes from: the API server or a folder of manifests."""
