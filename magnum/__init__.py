"""Magnum, the containers service for OpenStack."""

__version__ = "1.0.0"
