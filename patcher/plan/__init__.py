"""What is to be done to each function, as immutable values: targets resolved, edits numbered."""
