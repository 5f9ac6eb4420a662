"""Tests on real hosts, and how these are made."""
