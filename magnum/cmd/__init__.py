"""The programs: wiring, signals, start and end."""
