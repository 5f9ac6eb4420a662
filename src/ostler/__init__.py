"""Ostler looks after hosts: one fleet out of the machines that people own or rent."""

__version__ = "0.1.0"
