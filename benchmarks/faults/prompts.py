"""Requests that are the same in every recording of a family."""

from __future__ import annotations

import numpy as np

Prompt = tuple[int, ...]

PLAIN_TOKENS = (1, 256)
"""The first of the token ids of prompts, and the one behind the last: others are padding and ends of text."""
NEW_TOKENS = 4
"""Tokens generated after each prompt, so that there are passes that decode."""

LENGTHS: dict[str, tuple[int, ...]] = {
    "mixed": (5, 61, 27, 130),
    "short": (5, 9, 17, 12),
    "long": (500, 12),
    "middle": (96, 200),
    "shared": (40, 70, 25),
    "wide": (5, 61, 130, 27, 500),
    "alone": (29,),
    "repeated": (40,),
}
"""By kind. One prompt ``alone`` has few rows, which share the error of a token once its experts flip; that of the kind
``repeated`` is one token again and again, so that its rows are alike."""
_SEEDS = ("long", "middle", "mixed", "shared", "short", "wide", "alone", "repeated")
"""Kinds in the order of their seeds: a new one comes last, so that the others stay what they are."""
SHARED_PREFIX = 20
"""Tokens that all prompts of the kind ``shared`` begin with."""


def make_prompts(kind: str) -> tuple[Prompt, ...]:
    """Random token ids from 1 to 255, the same ones in every process; ``kind`` is a key of ``LENGTHS``."""
    generator = np.random.default_rng(_SEEDS.index(kind) + 7)
    prompts = [tuple(int(token) for token in generator.integers(*PLAIN_TOKENS, length)) for length in LENGTHS[kind]]
    if kind == "shared":
        prompts = [prompts[0][:SHARED_PREFIX] + prompt[SHARED_PREFIX:] for prompt in prompts]
    if kind == "repeated":
        prompts = [prompt[:1] * len(prompt) for prompt in prompts]
    return tuple(prompts)
