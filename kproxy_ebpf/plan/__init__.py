"""Pure functions from cluster state to table contents.

endpoints.py chooses, services.py plans one Service, tables.py finds the smallest ordered set of writes; allocate.py
hands out ids and ranges. Nothing here does I/O: time comes from an injected clock, the writes are performed elsewhere.
"""
