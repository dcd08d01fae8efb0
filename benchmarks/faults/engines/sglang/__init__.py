"""Real SGLang servers.

``checkpoints`` writes models, ``engine`` records.
"""
