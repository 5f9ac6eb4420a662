"""The part that makes machines exist and carry the daemon."""
