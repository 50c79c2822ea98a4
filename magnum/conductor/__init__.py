"""The only program at the database; also chooses hosts."""
