"""Clocks, backoff, the shape of loops, logs, configuration."""
