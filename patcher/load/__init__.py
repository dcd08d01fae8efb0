"""Rewritten modules put in place: at import, from the cache, or in a running process."""
