"""Level-triggered reconciliation: what is dirty is planned again and written."""
