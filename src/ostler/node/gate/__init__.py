"""The network gate of one attempt: what runs beside its sandbox and lets it reach the hosts that it may. Standard library alone."""
