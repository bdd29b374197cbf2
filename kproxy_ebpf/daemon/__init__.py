"""The composition root: one TaskGroup that joins source, reconciler, datapath and servers."""
