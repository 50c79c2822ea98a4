"""Starts the real servers that tests and the quickstart need, below one folder, and takes them away again."""
