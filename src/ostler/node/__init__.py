"""The node: it owns the attempts that run on one machine."""
