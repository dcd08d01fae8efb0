"""Taps wherever code comes from: whoever loads it, by whatever way, and whatever it calls."""
