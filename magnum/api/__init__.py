"""The REST server: HTTP, authentication, policy, validation. Never opens the database or an engine."""
