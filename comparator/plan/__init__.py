"""From a pair's metadata to a plan: dims, axes, shards, tokens. No payload is read."""
