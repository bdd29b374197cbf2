"""Pure functions from cluster state to table contents.

services/ plans one Service: its frontends and the endpoints that each leads to. tables/ finds the smallest ordered set
of writes that brings the maps to a plan. Nothing here does I/O: time comes from an injected clock, and
datapath/maps/ performs the writes.
"""
