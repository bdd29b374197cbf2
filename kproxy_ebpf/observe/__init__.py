"""How the daemon shows itself: logs, metrics, health."""
