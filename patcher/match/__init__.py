"""Patterns, and the places in a function that they match."""
