"""Pure functions from cluster state to table contents."""
