"""Rollouts: one release onto many hosts, decided purely, carried out elsewhere."""
