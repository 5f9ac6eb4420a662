"""The worker: the program in which Python tasks run, in whichever interpreter a node is told to use. Standard library alone."""
