"""What SGLang's dumper offers beside ``dump`` and ``step``, under the names that it has there.

The keywords of its ``dump``, ``dump_dict`` and ``dump_model`` are among those of ours (``recorder.py``). Nothing that
models call here raises into them.
"""

from __future__ import annotations

import os

from dumper.recording.compiled import Tracing
from dumper.recording.context import TagsOfCalls
from dumper.recording.step_calls import StepCalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from typing import Any

    from dumper.recording.attach import Attachment
    from dumper.recording.context import AddedTags


class CallsOfSglang(StepCalls):
    """The part of the recorder that is there for programs written for SGLang's dumper."""

    @property
    def may_enable(self) -> bool:
        """Whether something is recorded, or may be once it is asked for from outside."""
        return self.settings.enable or self.settings.controlled

    def get_state(self) -> dict[str, Any]:
        """Settings under ``config``, the step under way, and how many values were recorded (``dump_index``)."""
        from dumper.recording.state import state_for_sglang

        return state_for_sglang(self.state())

    def configure_default(self, **settings: Any) -> None:
        """``configure``, but for settings that a variable of the environment is there for."""
        from dumper.settings import is_in_environment

        given = {key: value for key, value in settings.items() if not is_in_environment(key, os.environ)}
        if given:
            self.configure(**given)

    def set_ctx(self, **tags: Any) -> None:
        """Add tags to every record of every thread, until they are set to None. Does nothing in code that is compiled:
        ``ctx`` works there."""
        if Tracing.is_compiling():
            return
        with self._lock:
            merged = {**self._common_tags, **tags}
            before = bool(self._common_tags)
            self._common_tags = {key: value for key, value in merged.items() if value is not None}
            if before != bool(self._common_tags):
                self._refresh()  # taps record by themselves where there is nothing to be added

    def _tags_of_calls(self, tags_of: Callable[[Any], Mapping[str, Any]], tags: Mapping[str, Any]) -> AddedTags:
        """What ``ctx`` gives for a function that finds the tags of a call in its first argument."""

        def complain(error: Exception) -> None:
            self._complain(f"the tags of a call could not be found: {error}", key=f"ctx {type(error)} {error}")

        return TagsOfCalls(self._thread_tags, tags, tags_of, complain)

    def capture_output(self) -> AbstractContextManager[dict[str, Any]]:
        """Record into the map that a ``with`` block is given, by name: ``value``, and what is known of it as ``meta``.

        What recording that is off, or the filter, leaves out is not in it; of records of one name, the last is.
        """
        from dumper.recording.capture import Capture, CapturedOutput

        output = CapturedOutput(lambda: self.settings)
        return Capture(self._lock, self._captures, self._refresh, output)

    def register_non_intrusive_dumper(self, model: Any) -> Attachment | None:
        """Record what a model is given and returns, without a change of its source; None where
        ``non_intrusive_mode`` is ``off``. ``reset``, or ``detach`` of the result, takes that back."""
        mode = self.settings.non_intrusive_mode
        if mode == "off":
            return None
        from dumper.recording.non_intrusive import watch_model

        attachment = watch_model(self._recorder, self._thread_tags, model, everything=mode == "all")
        self._attachments.append(attachment)
        return attachment

    def reset(self) -> None:
        """Complete the recording, let go of models and tags; what is recorded next is a run of its own from step 0,
        ``RUN-2`` after ``RUN``."""
        while self._attachments:
            self._attachments.pop().detach()
        recorded = self._open.session is not None
        self.close()
        with self._lock:
            self._common_tags = {}
            if recorded and self._settings is not None:
                from dumper.recording.state import next_run

                self._settings = self._settings.changed(run=next_run(self._settings.run))
