"""What is done to a coordinator's data from beside it: looked at, brought up to date, backed up, restored, moved."""
