"""The keeper: one small process per node that is the parent of all attempts and outlives the daemon."""
