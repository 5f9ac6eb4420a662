"""The one door: HTTP routes, credentials, and how errors look from outside."""
