"""Reports that are written at the end, beside the one that is printed: the page, JUnit, Markdown.

None of them can take the verdict away: what cannot be written is said, and the exit code stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from comparator.errors import ComparatorError
from comparator.report.records import ReportRecord, TensorComparison
from comparator.report.whole_files import own_folder, write_whole

if TYPE_CHECKING:
    from comparator.measure.picture import Draws, Picture
    from comparator.report.sources import Sources
    from comparator.report.strips import TokenStrips


class Written(Protocol):
    """Takes records as JSON objects, and is a text in the end."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one record."""

    def draw(self, picture: Picture) -> None:
        """Take the picture of the finding that came last."""

    def explain(self, sources: Sources) -> None:
        """Take where taps are in the source."""

    def show_tokens(self, strips: TokenStrips) -> None:
        """Take what is known of single tokens."""

    def text(self, *, missing: Sequence[str] = ()) -> str:
        """All of it; ``missing`` says what it does not have, and why."""


# Each is imported when it is asked for: most comparisons ask for none, and start sooner.


def _page() -> Written:
    from comparator.report.html.page import Page

    return Page()


def _junit() -> Written:
    from comparator.report.junit import Junit

    return Junit()


def _markdown() -> Written:
    from comparator.report.markdown import Markdown

    return Markdown()


MAKERS: Mapping[str, Callable[[], Written]] = {"html": _page, "junit": _junit, "markdown": _markdown}
"""By the name of the flag that asks for it."""


class Outputs:
    """The reports that were asked for, each with its file. It is a ``Reporter``."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        """``asked`` gives the file by the name of the flag; None where there is none."""
        self._written = {
            name: (Path(path), MAKERS[name]()) for name, path in asked.items() if name in MAKERS and path is not None
        }
        self._drawn, self._problem = _drawn(asked)
        self._picture: Callable[[], Picture | None] = lambda: None

    def __bool__(self) -> bool:
        return bool(self._written or self._drawn)

    @property
    def draws(self) -> Draws:
        """Which findings need a picture."""
        if any(kind == "all" for kind, _ in self._drawn):
            return "all"
        return "failures" if self else "nothing"

    def follow(self, picture: Callable[[], Picture | None], sources: Sources) -> None:
        """Take pictures too: ``picture`` gives that of the finding that is being reported."""
        self._picture = picture
        for _, written in self._written.values():
            written.explain(sources)

    def report(self, record: ReportRecord) -> None:
        plain = record.model_dump()
        self.add(plain)
        picture = self._picture() if isinstance(record, TensorComparison) else None
        if picture is not None:
            for _, written in self._written.values():
                written.draw(picture)
            for kind, drawn in self._drawn:
                if kind == "all" or plain["category"] == "failed":
                    drawn.draw(plain, picture)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record as a JSON object."""
        for _, written in self._written.values():
            written.add(record)

    def show_tokens(self, strips: TokenStrips | None) -> None:
        """Take what is known of single tokens, once everything is measured."""
        if strips is not None:
            for _, written in self._written.values():
                written.show_tokens(strips)

    def complete(self, *, missing: Sequence[str] = ()) -> Iterator[str]:
        """Write the files; says of each where it is, or why it is not. ``missing`` says what they do not have."""
        for name, (path, written) in self._written.items():
            try:
                write_whole(path, written.text(missing=missing).encode("utf-8", errors="backslashreplace"))
            except OSError as error:
                yield f"the report {path} is not written: {error.strerror or error}; choose another place with --{name}"
            else:
                yield f"report: {path}"
        if self._problem is not None:
            yield self._problem
        for _, drawn in self._drawn:
            yield from drawn.complete()


PICTURES = Path("/tmp/comparator_viz")
"""Where SGLang's comparator puts pictures by itself."""


class Drawn(Protocol):
    """Draws pictures as they come."""

    def draw(self, finding: Mapping[str, Any], picture: Picture) -> None:
        """Take the picture of a finding."""

    def complete(self) -> Iterator[str]:
        """Write what is left; says where pictures are, or why they are not."""


def _drawn(asked: Mapping[str, Any]) -> tuple[list[tuple[Draws, Drawn]], str | None]:
    """What is to be drawn, and of which findings; and why nothing can be."""
    drawn: list[tuple[Draws, Drawn]] = []
    if not any(asked.get(name) for name in ("png", "viz_bundle_details", "visualize_per_token")):
        return drawn, None
    from comparator.report.png import PngFolder, TokenPng

    try:
        if asked.get("png"):
            drawn.append(("failures", PngFolder(Path(asked["png"]))))
        if asked.get("viz_bundle_details"):
            folder = Path(asked["viz_output_dir"])
            if folder == PICTURES:  # where everybody may make a folder of that name
                own_folder(folder)
            drawn.append(("all", PngFolder(folder)))
        if asked.get("visualize_per_token"):
            drawn.append(("all", TokenPng(Path(asked["visualize_per_token"]))))
    except ComparatorError as error:
        return [], str(error)
    except OSError as error:
        reason = error.strerror or str(error)
        return [], f"pictures are not written to {asked['viz_output_dir']}: {reason}; choose a place: --viz-output-dir"
    return drawn, None
