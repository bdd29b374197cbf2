"""Level-triggered reconciliation: a queue of what is dirty, and one reconciler for each part of the tables."""
