"""A fuzz target for each parser: ``python -m tests.fuzz`` runs more inputs than the tests do."""
