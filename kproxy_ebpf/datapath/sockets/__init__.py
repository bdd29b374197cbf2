"""The programs at the cgroup, and terminating sockets whose backend is gone."""
