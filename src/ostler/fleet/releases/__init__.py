"""Releases on the operator's machine: built, signed, kept, checked, pruned. What a host does with one is in `fleet.host`."""
