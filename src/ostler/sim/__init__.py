"""Simulated nodes: the real protocol without processes, to find out what a coordinator carries."""
