"""The coordinator: it owns the truth, and each state change is one operation in one transaction."""
