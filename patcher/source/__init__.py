"""Modules and functions, found without importing them."""
