"""Errors that a user can do something about; the command line prints them without a traceback."""

from __future__ import annotations


class ComparatorError(ValueError):
    """A request that cannot be carried out: a usage error or a run that cannot be read (exit code 2)."""


class PairError(Exception):
    """One pair of bundles that cannot be compared; its category is ``errored`` and the others go on."""

    def __init__(self, message: str, *, hint: str = "", name: str = "pair-not-comparable") -> None:
        super().__init__(message)
        self.hint = hint
        self.name = name
        """One of ``comparator.messages``."""
