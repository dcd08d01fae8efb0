"""Functions whose records get tags that are found in the first argument of each call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from dumper.recording.context import AddedTags, ThreadTags


class TagsOfCalls(AddedTags):
    """A decorator: ``tags_of`` gives the tags of a call from its first argument."""

    __slots__ = ("_complain", "_tags_of")

    def __init__(
        self,
        of_thread: ThreadTags,
        added: Mapping[str, Any],
        tags_of: Callable[[Any], Mapping[str, Any]],
        complain: Callable[[Exception], None],
    ) -> None:
        """``complain`` is told why the tags of a call could not be found; the call is made without them."""
        super().__init__(of_thread, added)
        self._tags_of = tags_of
        self._complain = complain

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        of_thread, added, tags_of, complain = self._of_thread, self._added, self._tags_of, self._complain

        @functools.wraps(function)
        def tagged(*args: Any, **kwargs: Any) -> Any:
            try:
                found = {**added, **tags_of(args[0])}
            except Exception as error:
                complain(error)
                found = dict(added)
            with AddedTags(of_thread, found):
                return function(*args, **kwargs)

        return tagged
