"""The database. Imported by the conductor alone."""
