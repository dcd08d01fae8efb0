"""The main scenario with real servers: ``python -m demo`` (see README.md)."""
