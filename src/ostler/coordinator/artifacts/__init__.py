"""Delivered bytes, named by their sha256."""
