"""From numbers to verdicts: criteria and their application."""
