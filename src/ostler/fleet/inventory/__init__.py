"""Which hosts there are: files of several tools are read, never run, and become one list that knows where each value came from."""
