"""Taps inside CUDA graphs.

A tap inside a graph runs in Python once, while the graph is captured. The copy of its value into memory of ours becomes
part of the graph, and what a replay has left there is recorded after it, on the replay's stream. ``watch`` tells of
captures, replays and resets, ``captures`` to which of them a tap belongs. ``memory`` is what taps copy into, ``order``
keeps a replay from overwriting what is not read yet, ``rows`` says which rows a pass has filled, and ``replays`` hands
values over. ``taps`` puts these together, and ``account`` keeps count.
"""
