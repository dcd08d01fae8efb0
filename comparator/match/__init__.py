"""From the indexes of two runs to pairs of bundles: names, the map, grouping, order. No payload is read."""
