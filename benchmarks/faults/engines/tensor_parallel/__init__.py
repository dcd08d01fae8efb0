"""A tensor-parallel Transformer of our own on gloo, small enough to read, whose rounding is a setting.

``shapes``: what is computed. ``numerics``: in which order and precision. ``model``: the forward pass, into which faults
are patched. ``schedule``: which tokens a pass computes. ``record``: processes, one per rank.
"""
