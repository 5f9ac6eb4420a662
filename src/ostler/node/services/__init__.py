"""Services: the systemd units of this host that commands may touch. Loaded only by a node that declares any."""
