"""Where rows live: one port, an adapter per database, and operations run through it."""
