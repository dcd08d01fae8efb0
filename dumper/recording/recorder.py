"""The recorder: what the one ``dumper`` object is. Its methods run on the model's threads and never raise because a
recording failed."""

from __future__ import annotations

from dumper.recording.compiled import Tracing, is_capturing
from dumper.recording.context import AddedTags, ThreadTags
from dumper.recording.in_graph import record_in_graph
from dumper.recording.lifecycle import watch_forks
from dumper.recording.sglang_calls import CallsOfSglang
from dumper.values.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager
    from typing import Any

    from dumper.adapters.protocol import Parallel
    from dumper.recording.attach import Attachment
    from dumper.recording.capture import Capture
    from dumper.recording.graphs.captured import CapturedGraph
    from dumper.recording.special_values import SpecialValues


class Recorder(CallsOfSglang):
    """Records values, steps and token layouts of this process. See ``docs/contracts.md``, contract 2."""

    # Tags and tokens

    def ctx(self, tags_of: Callable[[Any], Mapping[str, Any]] | None = None, /, **tags: Any) -> AddedTags:
        """Add tags to every record of this thread inside a ``with`` block, or in every call of a function that is
        decorated with the result; a record's own tags win. ``tags_of`` gives more from the first argument of a call."""
        if tags_of is None:
            return self._thread_tags.adding(tags)
        return self._tags_of_calls(tags_of, tags)

    def last_tokens(self, value: Any, batch: Any) -> Any:
        """Of ``value``, shape (batch, sequence, ...), the rows of the last token of each sequence of the engine's
        batch, shape (sequences, ...). For the expressions of taps: raises ValueError where no adapter can tell."""
        from dumper.adapters import last_tokens

        return last_tokens(value, batch)

    # Records

    def dump(
        self,
        name: str,
        value: Any,
        save: bool = True,
        dims: str | None = None,
        dims_grad: str | None = None,
        *,
        level: str | None = None,
        grad: bool = False,
        step: int | None = None,
        grafter_extras: Any = None,
        **tags: Any,
    ) -> None:
        """Record a value as it is now: a tensor, an array, a number, text, or a list or map of plain values.

        The value is copied before the call returns (from an accelerator the copy is started, and nothing waits for it),
        so it may be modified afterwards. A tuple, a dataclass or a map that holds tensors is recorded tensor by tensor,
        as ``name.key``; a function is called where its value is wanted. Nothing is recorded, and the call costs next to
        nothing, while recording is off. Never raises: a value that cannot be recorded is logged once and counted in the
        run.

        ``name``: what the comparator pairs by, together with ``tags`` (``layer_id=3``; numbers and text) and the step.
        ``save``: False records nothing.
        ``dims``: what the dimensions are and how each is split, such as ``"t h[attn_tp:partial]"`` (docs/dims.md);
        needed to compare runs of different parallel layouts. ``dims_grad``: those of the gradient, where they differ.
        ``level``: how much is kept of this value, ``full``, ``sample(rows=8)``, ``sample(stride=4)``, ``stats`` or
        ``hash``; the setting ``level`` decides where it is None.
        ``grad``: whether the gradient is recorded too, when the backward pass has computed it (stream ``grad``); the
        setting ``enable_grad`` asks for those of all values.
        ``step``: the step that the value belongs to; None: the one under way.
        ``grafter_extras``: of SGLang's dumper, without effect.
        """
        if not self._recording:
            return
        if save is not True:
            if not save:
                return
            if isinstance(save, str):  # dims in the place of those of a tap
                dims = save
        if Tracing.by_dynamo() or Tracing.flags._is_compiling_flag:
            # Made here: what remembers sources would change under the guards of the graph.
            record_in_graph(self.number, Source(name, level, grad, None, "value"), value, dims, tags)
        else:
            if level is None and not grad and dims_grad is None:
                source = Source.named(name)
            else:
                source = Source.of(name, level, grad, gradient_dims=dims_grad)
            self.submit(source, value, dims, tags, step)

    def dump_dict(
        self,
        name: str = "",
        value: Any = None,
        save: bool = True,
        *,
        dims: str | None = None,
        name_prefix: str | None = None,
        data: Any = None,
        **tags: Any,
    ) -> None:
        """Record every leaf of a nested dict, dataclass, list or tuple, or every attribute of another object, as
        ``name.key``; ``name_prefix`` and ``data`` are SGLang's words for ``name`` and ``value``."""
        if not self._recording or not save:
            return
        if name_prefix is not None:
            name = name_prefix
        if data is not None:
            value = data
        if Tracing.is_compiling():
            record_in_graph(self.number, Source(name, None, False, None, "value"), value, dims, tags)
        else:
            from dumper.recording.flatten import named_parts

            try:
                parts = named_parts(name, value)
            except Exception as error:
                self._complain(f"{name} was not taken apart: {error}", key=f"{name}{type(error)}")
                return
            for leaf_name, leaf in parts:
                self.submit(Source.named(leaf_name), leaf, dims, tags)

    def dump_model(
        self,
        model: Any,
        name_prefix: str | None = None,
        save: bool = True,
        get_grad: Callable[[Any], Any] | None = None,
        step: int | None = None,
        *,
        prefix: str = "param",
        grad: bool = True,
        dims: str | None = None,
        **tags: Any,
    ) -> None:
        """Record every parameter of a module as ``prefix.path``, and its gradient where it has one, under ``step`` or
        the step under way. ``get_grad`` gives the gradient of a parameter whose ``grad`` is not it; ``dims`` are
        declarations (``# dp:replicated``), to which those of a DTensor are added.

        ``name_prefix`` is SGLang's: the names are ``name_prefix__path``.
        """
        if not self._recording or not save:
            return
        from dumper.recording.flatten import parameters

        settings = self.settings
        if step is None and not self._steps.inside:
            # Between the passes of a model whose passes are steps: weights are those of the one before.
            step = self._steps.number
        named = f"{prefix}." if name_prefix is None else f"{name_prefix}__"
        try:
            for name, value, stream, own in parameters(
                model,
                named if prefix or name_prefix is not None else "",
                with_values=settings.enable_model_value,
                with_gradients=grad and settings.enable_model_grad,
                get_grad=get_grad,
                as_it_is=name_prefix is not None,
                dims=dims,
            ):
                self.submit(Source.of(name, stream=stream), value, own, tags, step, of_model=True)
        except Exception as error:
            self._complain(f"the parameters of a model were not recorded: {error}", key=f"dump_model {type(error)}")

    def attach(self, model: Any, pattern: str, **options: Any) -> Attachment:
        """Record inputs and outputs of modules by path (``attach.py``). Raises ValueError without a match."""
        from dumper.recording.attach import attach

        return attach(
            lambda name, paths: self._taps.of_modules(name, paths, self.install_taps), model, pattern, **options
        )

    def observe_megatron(self, kinds: Iterable[str] | None = None) -> AbstractContextManager[None]:
        """Record, inside a ``with`` block, the tensors that Megatron-core hands out by itself, with dims and layer
        number; ``kinds`` chooses. Raises ImportError where this Megatron-core hands nothing out."""
        from dumper.adapters import describe_process
        from dumper.adapters.megatron_observation import observing

        _, cp_size = describe_process(in_full=False).parallel.get("cp", (0, 1))
        return observing(self.dump, kinds, cp_size)

    def capture(self) -> Capture:
        """Record into the list that a ``with`` block is given, in memory, instead of to disk; recording need not be
        enabled."""
        from dumper.recording.capture import Capture

        return Capture(self._lock, self._captures, self._refresh)

    def submit(
        self,
        source: Source,
        value: Any,
        dims: str | None,
        tags: Mapping[str, Any],
        step: int | None = None,
        of_model: bool = False,
    ) -> None:
        """Record a value. ``step`` is the current one unless given (gradients come with that of their forward pass);
        ``of_model``: it is a parameter, whose gradient comes by itself."""
        if not self._recording:
            return
        try:
            # Of the class: an attribute of the object is looked up for the thread first, which takes longer.
            added = (self._thread_tags.tags or self._thread_tags.of_backward_pass()) if ThreadTags.in_use else None
            # A gradient has the tags of its value.
            if (added or self._common_tags) and (source.stream == "value" or of_model):
                tags = {**self._common_tags, **(added or {}), **tags}
            shortcut = self._shortcut
            if shortcut is not None and shortcut(source, value, dims, tags, step):
                return
            self._submit_any(source, value, dims, tags, step, of_model)
        except Exception as error:
            self.value_lost(source, error)

    def value_lost(self, source: Source, error: Exception) -> None:
        """Say that a value was not recorded; it is counted already."""
        self._complain(f"{source.name} was not recorded: {error}", key=f"{source.name}{type(error)}")

    def _submit_any(
        self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any], step: int | None, of_model: bool
    ) -> None:
        if type(value) not in self._unnested:
            taken_apart = self._special.submit_parts(source, value, dims, tags, step, self._steps.number)
            if taken_apart:
                return
            if taken_apart is None:
                self._unnested.add(type(value))
        if is_capturing(value):
            self._put_into_graph(source, value, dims, tags)
            return
        if self._only_graphs:
            return
        wanted = self._values or of_model or source.stream != "value"
        if self._captures and wanted:
            from dumper.recording.capture import captured

            record = captured(source, value, dims, tags, self._steps.number if step is None else step)
            self._captures[-1].append(record)
        elif wanted and (not (is_first := self._is_first(step)) or self._has_step()):
            # What kept the first value of a step from the shortcut is done.
            if is_first and self._shortcut is not None and self._shortcut(source, value, dims, tags, step):
                return
            session = self._open.session or self._open_session()
            if step is None and self._steps.inside:
                step = self._steps.number
            session.submit(source, value, dims, tags, step)
            self._find_shortcut(session)
        if (source.grad or (self._gradients and not of_model)) and source.stream == "value":
            self._special.await_gradient(source, value, dims, tags, self._steps.number)

    @property
    def _special(self) -> SpecialValues:
        """Who takes apart what is not recorded as it comes."""
        if self._special_values is None:
            with self._lock:  # a module that is half imported stays locked in the child of a fork
                from dumper.recording.special_values import SpecialValues

                self._special_values = SpecialValues(self.submit, self._add_axes, self._wants, self._count_failed)
        return self._special_values

    def _wants(self, source: Source, dims: str | None, tags: Mapping[str, Any], step: int | None) -> bool:
        """Whether a value that is not there yet would be recorded."""
        if self._captures or self._gradients or source.grad:
            return True
        return (step is not None or self._has_step()) and self._open_session().wants(source, dims, tags, step)

    def _count_failed(self) -> None:
        """A value could not be computed."""
        if not self._captures:
            self._open_session().count_lost("lost_encoding")

    def _add_axes(self, axes: Parallel) -> None:
        if not self._captures:
            self._open_session().add_axes(axes)

    def submit_from_graph(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any]) -> None:
        """What ``submit`` does, for a tap whose code does not run: inside compiled code or a CUDA graph."""
        if self._recording:
            self._taps.count(source.tap, 1)
            self.submit(source, value, dims, tags)

    def count_tap(self, tap: str | None) -> None:
        """A tap fired whose code does not run, inside compiled code."""
        self._taps.count(tap, 1)

    def _put_into_graph(self, source: Source, value: Any, dims: str | None, tags: Mapping[str, Any]) -> None:
        """Record ``value`` at every replay of the CUDA graph that is being captured; the capture itself is no event."""
        self._taps.count(source.tap, -1)
        graphs = self._graph_taps()
        try:
            if graphs is not None:
                graphs.capture(source, value, dims, tags)
        except Exception:
            self._open_session().count_lost("lost_encoding")
            raise
        if (source.grad or self._gradients) and source.stream == "value":
            # Where the backward pass is captured as well, its replays record the gradient.
            self._special.await_gradient(source, value, dims, tags, self._steps.number)

    def record_replay(self, graph: CapturedGraph) -> bool:
        """Record what a replay of a CUDA graph has left; whether recording was on. Never raises."""
        if graph.step is not None:
            self._taps.count(graph.step.tap, 1)
            self.begin_step(graph.step.batch, None, graph.step.tags)
        try:
            return self._record_values(graph)
        finally:
            if graph.step_ends:
                for tap in graph.step_ends:
                    self._taps.count(tap, 1)
                self.end_step()

    def _record_values(self, graph: CapturedGraph) -> bool:
        if not self._recording or self._only_graphs:
            return False
        try:
            for tap in graph.counters:
                tap.fired += 1
            if self._captures:
                for value in graph.taps:
                    self.submit(value.source, value.value, value.dims, value.tags)
            elif self._has_step(len(graph.taps)):
                steps = self._steps
                session = self._open.session or self._open_session()
                step = steps.number if steps.inside else None
                values = session.submit_replay(graph, {**self._common_tags, **self._thread_tags.tags}, step, steps.size)
                if self._graphs is not None:
                    self._graphs.account.replayed(graph, values)
        except Exception as error:
            self._complain(f"values of a CUDA graph were not recorded: {error}", key=f"graph {type(error)}")
        return True

    def _is_first(self, step: int | None) -> bool:
        """Whether a value that comes now, for the step under way where ``step`` is None, may be the first of that."""
        return step is None and not (self._steps.announced and self._steps.inside)

    def _has_step(self, values: int = 1) -> bool:
        """Whether records that come now (so many) are wanted: they belong to a step, or need not."""
        steps = self._steps
        if steps.inside:
            if not steps.announced:
                with self._lock:
                    self._announce_step(for_record=True)
                    steps.announced = True
            return True
        if self.settings.outside_steps == "record":
            return True
        self._open_session().status.add("outside_steps", values)
        return False


dumper = Recorder()
watch_forks(lambda: dumper._lock, dumper._forked)
