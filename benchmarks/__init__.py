"""Figures of Magnum beside their floors, measured in the same run: see ``docs/performance.md``."""
