"""Transformers models in this process.

``models`` builds them, ``variants`` computes them in other ways, ``engine`` records.
"""
