"""Rollouts over SSH: the engine, its journal, and the steps; what is next is decided by `ostler.model.rollout`."""
