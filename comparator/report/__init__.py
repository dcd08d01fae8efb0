"""Findings of a comparison and how they are written: records, JSON lines, text for people."""
