"""The text of one function while it is edited, line by line, each line knowing where it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakValueDictionary

import libcst as cst
from libcst.metadata import CodeRange

from patcher.match.pattern import names_in
from patcher.match.positions import Positions

Kind = Literal["source", "replaced", "inserted", "generated"]
Role = Literal["before", "after", "entry", "end"]
_WRAPPER = "if True:"


@dataclass(eq=False)
class Line:
    """One line of a function's text, without its line break. Lines are told apart by identity."""

    text: str
    origin: int
    """1-based line of the original file that tracebacks show for this line."""
    kind: Kind = "source"
    """``source``: the file's own (``replaced``: an edit took its place); ``inserted``: code that a config put
    in; ``generated``: a tap. Later edits match the first two, never taps."""
    role: Role | None = None
    columns_kept: bool = True
    """Whether columns of this line are still those of the original line."""
    indent: str = ""
    """Of a line that an edit put in, the indentation of the code that it belongs to."""
    owner: str = ""
    """The edit that put the line there, for messages."""
    returns: list[ReturnHook] = field(default_factory=list)
    """Code to run at the ``return`` statement that begins on this line, once its value is known."""
    preamble: bool = False
    """Whether it belongs to the preamble of a patch."""
    written: str | None = None
    """How the config or the source has it, where a tap has made another text of it."""

    @property
    def as_written(self) -> str:
        """The text without what taps made of it."""
        return self.text if self.written is None else self.written


@dataclass(frozen=True)
class CodeLine:
    """One line of code to insert."""

    text: str
    verbatim: bool = False
    """The line continues a string: it must not be indented."""

    def at(self, indent: str) -> str:
        """The line at an indentation."""
        return self.text if self.verbatim or not self.text else indent + self.text


@dataclass(frozen=True)
class ReturnHook:
    """Lines (unindented) that an ``at: return`` edit puts before a return statement."""

    lines: tuple[CodeLine, ...]
    kind: Kind
    owner: str
    needs_value: bool
    """Whether the lines refer to the returned value, which is then computed first, once."""


@dataclass(frozen=True)
class Wrap:
    """Text to put before and after an expression. Lines are told apart by identity, columns are those of their text."""

    first: Line
    start: int
    last: Line
    end: int
    before: str
    after: str


@dataclass(eq=False)
class FunctionBuffer:
    """A function's lines, decorators included, at the indentation that they have in the file."""

    lines: list[Line]
    wraps: list[Wrap] = field(default_factory=list)
    """Wraps that are not in the lines yet. Taps are not matched by later edits, so putting all of them in at once is
    the same, and what is parsed stays as it was meanwhile."""
    edited_by_lines: list[tuple[str, int]] = field(default_factory=list)
    """Edits that put lines in the place of lines, perhaps halves of statements: which, and from which original line."""
    _views: dict[bool, FunctionView] = field(default_factory=dict)
    _unchanged: set[bool] = field(default_factory=set)
    """Those of the views that are known to be of the lines as they are now, rewritten statements excepted."""
    _rewritten: list[tuple[frozenset[str], frozenset[str]]] = field(default_factory=list)
    """Names in each statement that was rewritten since the views were parsed: in the old text, and in the new one."""

    @classmethod
    def from_source(cls, source_lines: Sequence[str], first: int, last: int) -> FunctionBuffer:
        """Lines ``first`` to ``last`` (1-based, inclusive) of a file."""
        return cls([Line(source_lines[number - 1], number) for number in range(first, last + 1)])

    @property
    def text(self) -> str:
        """The function as it stands."""
        return "\n".join(line.text for line in self.lines)

    def view(self, *, inserted: bool = False, names: Sequence[frozenset[str]] = ()) -> FunctionView:
        """Parse the lines that edits may match; with ``inserted`` also code that configs put in.

        Where it is only asked for places that hold all ``names`` of a set, each in one small statement, and no
        rewritten statement holds them or held them, an earlier view serves: those places are the same in it.
        """
        if self._rewritten and not (names and all(map(self._are_elsewhere, names))):
            self.changed()
        known = self._views.get(inserted)
        if known is None or inserted not in self._unchanged:
            kinds = ("source", "replaced", "inserted") if inserted else ("source", "replaced")
            visible = [line for line in self.lines if line.kind in kinds]
            if known is None or not known.is_of(visible):
                known = self._views[inserted] = FunctionView(visible)
            self._unchanged.add(inserted)
        return known

    def insert(self, index: int, lines: Sequence[Line]) -> None:
        """Put lines before the line that is now at ``index``."""
        self.lines[index:index] = lines
        # Taps are not parsed, so most edits leave what is parsed as it was.
        if any(line.kind != "generated" for line in lines):
            self.changed()

    def changed(self) -> None:
        """Lines that are parsed, or their texts, are not what they were."""
        self._unchanged.clear()
        self._rewritten.clear()

    def rewrote(self, old: str, new: str) -> None:
        """Whole statements have another text than they had; the lines of all others are the same."""
        self._rewritten.append((names_in(old), names_in(new)))

    def _are_elsewhere(self, names: frozenset[str]) -> bool:
        return bool(names) and not any(names <= old or names <= new for old, new in self._rewritten)

    def remember(self) -> Callable[[], None]:
        """What puts everything back as it is now."""
        lines = [(line, line.text, line.columns_kept, list(line.returns)) for line in self.lines]
        wraps, by_lines = list(self.wraps), list(self.edited_by_lines)

        def restore() -> None:
            for line, text, kept, returns in lines:
                line.text, line.columns_kept, line.returns = text, kept, returns
            self.lines = [line for line, *_ in lines]
            self.wraps, self.edited_by_lines = list(wraps), list(by_lines)
            self.changed()

        return restore

    def carry_out_wraps(self) -> None:
        """Put all wraps into the lines. Columns that were found before mean nothing afterwards."""
        if not self.wraps:
            return
        position = {id(line): number for number, line in enumerate(self.lines)}
        pieces: dict[int, list[tuple[tuple[int, ...], str]]] = {}
        for order, wrap in enumerate(self.wraps):
            first, last = position[id(wrap.first)], position[id(wrap.last)]
            # In one column, what ends comes before what begins; outer ones begin first and end last. Of two wraps of
            # the same expression the earlier is the outer one.
            pieces.setdefault(last, []).append(((wrap.end, 0, -first, -wrap.start, -order), wrap.after))
            pieces.setdefault(first, []).append(((wrap.start, 1, -last, -wrap.end, order), wrap.before))
        for number, found in pieces.items():
            line = self.lines[number]
            text, at = "", 0
            for (column, *_), piece in sorted(found):
                text += line.text[at:column] + piece
                at = column
            line.written = line.as_written
            line.text = text + line.text[at:]
            line.columns_kept = False
        self.wraps.clear()
        self.changed()


class _Parsed:
    """A parsed text."""

    def __init__(self, source: str) -> None:
        self.module = cst.parse_module(source)
        self.positions = Positions(self.module, source)


_alive: WeakValueDictionary[str, _Parsed] = WeakValueDictionary()
"""Parsed texts that somebody holds anyway."""


def _parsed(source: str) -> _Parsed:
    found = _alive.get(source)
    if found is None:
        found = _alive[source] = _Parsed(source)
    return found


class FunctionView:
    """A parsed snapshot of a buffer. Positions lead back to the buffer's line objects."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self._texts = [line.text for line in lines]
        self.memory: dict[Any, Any] = {}
        """What has been derived from this snapshot, by whoever derived it."""
        indented = bool(lines) and lines[0].text[:1].isspace()
        self._shift = 1 if indented else 0
        source = "\n".join([_WRAPPER] * self._shift + [line.text for line in lines]) + "\n"
        self._parsed = _parsed(source)
        self.module = self._parsed.module
        self.positions = self._parsed.positions

    def is_of(self, lines: Sequence[Line]) -> bool:
        """Whether a parse of these lines would give the same snapshot."""
        return len(lines) == len(self.lines) and all(
            line is own and line.text == text for line, own, text in zip(lines, self.lines, self._texts, strict=True)
        )

    def is_current(self, first: int, last: int) -> bool:
        """Whether the lines with these numbers still have the text that was parsed."""
        numbers = range(first - 1 - self._shift, last - self._shift)
        return all(self.lines[number].text == self._texts[number] for number in numbers)

    def range(self, node: cst.CSTNode) -> CodeRange:
        """Where a node is: lines as libcst counts them in this view, columns in characters from 0."""
        return self.positions[node]

    def line_at(self, number: int) -> Line:
        """The buffer line for a line number of this view."""
        return self.lines[number - 1 - self._shift]

    def text_of(self, node: cst.CSTNode) -> str:
        """Source text of a node as it stands in the function."""
        position = self.range(node)
        start, end = position.start, position.end
        numbers = range(start.line, end.line + 1)
        texts = [self.line_at(number).text for number in numbers]
        texts[-1] = texts[-1][: end.column]
        texts[0] = texts[0][start.column :]
        return "\n".join(texts)

    def find_function(self, path: Sequence[str], ordinal: int = 0) -> cst.FunctionDef:
        """The function definition at ``path``, a list of names of functions and classes, outermost first.

        ``ordinal`` chooses among several definitions of one name. Raises KeyError when there is none.
        """
        found = list(_definitions(self.module, tuple(path)))
        if ordinal >= len(found):
            raise KeyError(".".join(path))
        return found[ordinal]


_BLOCKS = (
    cst.BaseCompoundStatement,
    cst.BaseSuite,
    cst.Else,
    cst.Finally,
    cst.ExceptHandler,
    cst.ExceptStarHandler,
    cst.MatchCase,
)


def _definitions(node: cst.CSTNode, path: tuple[str, ...]) -> list[cst.FunctionDef]:
    """Definitions in source order; blocks such as ``if`` are looked into, other functions are not."""
    found: list[cst.FunctionDef] = []
    for child in node.children:
        if isinstance(child, (cst.FunctionDef, cst.ClassDef)):
            if child.name.value != path[0]:
                continue
            if len(path) > 1:
                found.extend(_definitions(child.body, path[1:]))
            elif isinstance(child, cst.FunctionDef):
                found.append(child)
        elif isinstance(child, _BLOCKS):
            found.extend(_definitions(child, path))
    return found
