"""Token ids as text, with a local tokenizer: nothing is fetched, and no code of a model is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from comparator.errors import ComparatorError
from comparator.report.strips import TokenStrips

Decode = Callable[[Sequence[int]], list[str] | None]
"""Token ids as one text each; None where an id is none of the tokenizer's."""


def open_tokenizer(path: str) -> Decode:
    """A tokenizer from ``tokenizer.json``, or from a model's folder. Raises ComparatorError where there is none."""
    given = Path(path)
    file = given / "tokenizer.json" if given.is_dir() else given
    try:
        if file.is_file() and file.suffix == ".json":
            from tokenizers import Tokenizer

            fast = Tokenizer.from_file(str(file))
            return _decoder(fast.get_vocab_size(), lambda one: str(fast.decode([one], skip_special_tokens=False)))
        if given.is_dir():
            from transformers import AutoTokenizer

            slow = AutoTokenizer.from_pretrained(str(given), local_files_only=True, trust_remote_code=False)
            return _decoder(len(slow), lambda one: str(slow.decode([one])))
    except ImportError as error:
        raise ComparatorError(f"--tokenizer {path} needs the package {error.name}; pip install {error.name}") from None
    except Exception as error:  # the libraries raise exceptions of their own, up to plain Exception
        raise ComparatorError(f"--tokenizer {path} cannot be read: {error}") from None
    raise ComparatorError(f"--tokenizer {path}: neither a tokenizer.json nor a model's folder")


def _decoder(size: int, decode: Callable[[int], str]) -> Decode:
    known: dict[int, str] = {}

    def texts(ids: Sequence[int]) -> list[str] | None:
        if any(one >= size for one in ids):
            return None
        for one in set(ids) - known.keys():
            known[one] = decode(one) if one >= 0 else "?"
        return [known[one] for one in ids]

    return texts


def with_texts(strips: TokenStrips, decode: Decode) -> TokenStrips:
    """The strips with their tokens as text, where the tokenizer knows them all."""
    decoded = [replace(strip, texts=decode(strip.ids) or []) for strip in strips.sequences]
    return replace(strips, sequences=decoded)
