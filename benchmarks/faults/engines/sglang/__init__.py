"""Real SGLang servers.

``checkpoints`` writes models, ``switch`` changes what a running server records, ``engine`` records.
"""
