"""The host program: what is done on a host itself, by the system's own Python and its standard library alone."""
