"""From one Service and its slices to the frontends and backends that it should have: pure rules."""
