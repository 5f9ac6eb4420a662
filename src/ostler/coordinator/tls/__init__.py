"""TLS of the coordinator: a private certificate authority, and the server's side of a connection."""
