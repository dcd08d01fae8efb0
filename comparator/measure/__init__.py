"""From aligned arrays, statistics and values to numbers. What is measured is not judged here."""
