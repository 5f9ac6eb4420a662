"""The ways to talk to a coordinator."""
