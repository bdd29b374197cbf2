"""One module for each kind of the Kubernetes API: its shape, its path, and how an object of it is read."""
