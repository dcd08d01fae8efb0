"""Carry plans out: read records, put shards together, pick rows, until both sides are arrays of one shape."""
