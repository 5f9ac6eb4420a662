"""Facts and legal changes: no I/O, no clock, no third party."""
