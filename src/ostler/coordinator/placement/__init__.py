"""Which job goes where: pure functions over values, called by operations and tested without a database."""
