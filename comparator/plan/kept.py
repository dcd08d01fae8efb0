"""Plans that are kept for the pairs that are alike: one layer after the other asks for those of all steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Plan = TypeVar("Plan")

MOST_ROWS = 1 << 21
"""Joined rows of the plans that are kept, some tens of megabytes."""
SMALLEST = 128
"""Rows that a plan counts for by itself."""


class KeptPlans(Generic[Plan]):
    """Plans by key. Those that were made first are let go once the sizes of all add up to more than ``most``."""

    def __init__(self, size_of: Callable[[Plan], int], most: int = MOST_ROWS) -> None:
        self._size_of = size_of
        self._most = most
        self._plans: dict[object, Plan] = {}
        self._size = 0

    def get(self, key: object) -> Plan | None:
        """The plan, if it is kept."""
        return self._plans.get(key)

    def keep(self, key: object, plan: Plan) -> Plan:
        """Remember a plan; gives it back."""
        self._plans[key] = plan
        self._size += self._size_of(plan)
        while self._size > self._most and len(self._plans) > 1:
            self._size -= self._size_of(self._plans.pop(next(iter(self._plans))))
        return plan
