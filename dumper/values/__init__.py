"""What a value is as bytes: dtypes, plain values, and the numbers that stand for a whole tensor."""
