"""Where objects are wired together; the only place that reads the environment."""
