"""Pictures of single tensors as PNG files, for those who paste into issues; and one of all tokens."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comparator.errors import ComparatorError
from comparator.measure.picture import Picture
from comparator.report.answer import label_of
from comparator.report.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_FILES = 500
"""Tensors that are drawn."""
MOST_LINES = 400
"""Tensors in the picture of all tokens: the worst."""
COLOURS = "cividis_r"
"""People with any kind of colour blindness can read it."""
_PLAIN = re.compile(r"[^A-Za-z0-9._=-]+")


def figure(width: float, height: float) -> Figure:
    """An empty picture, in inches. Raises ComparatorError without matplotlib."""
    try:
        from matplotlib.figure import Figure as Drawing
    except ImportError:
        raise ComparatorError("pictures need matplotlib: pip install matplotlib") from None
    return Drawing(figsize=(width, height), layout="constrained")


def _png(drawn: Figure) -> bytes:
    content = io.BytesIO()
    drawn.savefig(content, dpi=110, format="png")
    return content.getvalue()


class PngFolder:
    """Draws each tensor that has a picture into a folder: ``0003-attn_output_layer_id=1_step=0.png``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._problem: str | None = None
        self._drawn = self._left_out = 0
        figure(1, 1)

    def draw(self, finding: Mapping[str, Any], picture: Picture) -> None:
        """Draw one tensor; what goes wrong is said at the end."""
        if self._problem is not None:
            return
        if self._drawn >= MOST_FILES:
            self._left_out += 1
            return
        name = _PLAIN.sub("_", label_of(finding, step=True))[:120].strip("_")
        try:
            write_whole(self._folder / f"{self._drawn:04}-{name}.png", _png(tensor_figure(finding, picture)))
        except OSError as error:
            self._problem = f"pictures are not written to {self._folder}: {error.strerror or error}"
        self._drawn += 1

    def complete(self) -> Iterator[str]:
        """What to say of the pictures."""
        if self._problem is not None:
            yield self._problem
        elif self._drawn:
            more = f", {self._left_out} more tensors are not drawn" if self._left_out else ""
            yield f"pictures: {self._drawn} in {self._folder}{more}"
        else:
            yield "no pictures: no tensor that was to be drawn has any"


class TokenPng:
    """One picture of the errors of all tokens: a line for each tensor, in the order of execution."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[tuple[str, list[float]]] = []
        figure(1, 1)

    def draw(self, finding: Mapping[str, Any], picture: Picture) -> None:
        """Take the errors of one tensor's tokens."""
        self._lines.append((label_of(finding, step=True), picture.tokens.error))

    def complete(self) -> Iterator[str]:
        """Write the picture; says where it is, or why it is not."""
        if not self._lines:
            yield "no picture of the tokens: no tensor has any"
            return
        worst = np.argsort([-max(errors, default=0.0) for _, errors in self._lines], kind="stable")[:MOST_LINES]
        lines = [self._lines[at] for at in sorted(worst.tolist())]
        try:
            write_whole(self._path, _png(tokens_figure(lines)))
        except OSError as error:
            yield f"the picture {self._path} is not written: {error.strerror or error}"
            return
        left_out = len(self._lines) - len(lines)
        yield f"picture: {self._path}" + (
            f" (the worst {len(lines)} of {len(self._lines)} tensors)" if left_out else ""
        )


def tensor_figure(finding: Mapping[str, Any], picture: Picture) -> Figure:
    """Errors of tokens and channels, a histogram, and the surroundings of the worst element."""
    drawing = figure(11, 7.5)
    sampled = f", drawn from {picture.rows_drawn} of {picture.rows} rows" if picture.rows_drawn < picture.rows else ""
    drawing.suptitle(_text(f"{label_of(finding, step=True)}: {finding['category']}{sampled}"))
    axes = drawing.subplots(2, 2)
    floor = (finding.get("analysis") or {}).get("floor")
    _profile(axes[0][0], "token", picture.tokens.error, picture.tokens.each, floor)
    _profile(axes[0][1], "channel", picture.channel.error, picture.channel.each, None)
    counts = picture.histogram.counts
    edges = np.linspace(picture.histogram.low, picture.histogram.high, len(counts) + 1)
    if counts:
        axes[1][0].stairs(counts, edges, fill=True, color="#35608d")
    axes[1][0].set_title(f"target less baseline; {picture.histogram.equal} elements are the same", fontsize=9)
    around = picture.around
    gap = np.abs(np.array(around.target, np.float64) - np.array(around.baseline, np.float64))
    rows, columns = gap.shape
    extent = (
        around.channel - 0.5, around.channel + columns - 0.5, around.row + rows - 0.5, around.row - 0.5
    )  # fmt: skip
    image = axes[1][1].imshow(gap, cmap=COLOURS, aspect="auto", extent=extent, interpolation="nearest")
    drawing.colorbar(image, ax=axes[1][1])
    axes[1][1].set_title("difference around the worst element: row, channel", fontsize=9)
    return drawing


def _profile(axes: Axes, what: str, errors: list[float], each: int, floor: float | None) -> None:
    axes.plot(np.arange(len(errors)) * each, errors, color="#35608d", marker="." if len(errors) < 80 else "")
    if floor:
        axes.axhline(floor, color="#d55e00", linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_title(f"error of each {what} (relative L2)", fontsize=9)


def tokens_figure(lines: list[tuple[str, list[float]]]) -> Figure:
    """A heat map of the errors of tokens, on a logarithmic scale."""
    from matplotlib.colors import LogNorm

    width = max(len(errors) for _, errors in lines)
    values = np.full((len(lines), width), np.nan)
    for row, (_, errors) in enumerate(lines):
        values[row, : len(errors)] = errors
    known = values[np.isfinite(values) & (values > 0)]
    drawing = figure(min(20, 5 + width * 0.15), min(60, 2 + len(lines) * 0.2))
    axes = drawing.subplots()
    axes.set_facecolor("#dddddd")
    shown = np.where(values > 0, values, known.min() if known.size else 1.0)
    shown[np.isnan(values)] = np.nan
    norm = LogNorm(known.min(), known.max()) if known.size and known.min() < known.max() else None
    image = axes.imshow(shown, cmap=COLOURS, aspect="auto", norm=norm, interpolation="nearest")
    drawing.colorbar(image, ax=axes, label="relative L2 error of a token")
    axes.set_yticks(range(len(lines)), [_text(label)[:60] for label, _ in lines], fontsize=6)
    axes.set_xlabel("token")
    return drawing


def _text(label: str) -> str:
    """A label that is taken for no formula, with characters that fonts have."""
    return "".join(one if one.isprintable() else "?" for one in label).replace("$", r"\$")
