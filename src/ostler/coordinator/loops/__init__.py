"""The coordinator's loops, one a file: each observes rows, decides, and acts through one operation."""
