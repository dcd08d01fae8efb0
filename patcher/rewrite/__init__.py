"""The new text of a module, each line knowing where it came from."""
