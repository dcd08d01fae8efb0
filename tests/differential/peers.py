"""Both comparators on one pair of dumps: what they said, and where they disagree."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparator.cli import main
from testbed.wheels import sglang_wheel

COMPARED_TYPES = frozenset({"comparison_tensor", "comparison_skip", "comparison_non_tensor", "comparison_error"})


@dataclass(frozen=True)
class Outcome:
    """What one comparator made of a pair of dumps."""

    exit_code: int
    findings: tuple[dict[str, Any], ...]
    records: tuple[dict[str, Any], ...]
    error: str | None = None
    """Why it ended without a summary."""


def installed_package() -> Path | None:
    """Where the installed ``sglang`` package lies; None when it is not installed."""
    found = importlib.util.find_spec("sglang")
    locations = list(found.submodule_search_locations or ()) if found else []
    return Path(locations[0]) if locations else None


def released_package(release: str, folder: Path) -> Path:
    """The package of a release with what its comparator consists of, unpacked below ``folder``. Raises WheelError."""
    with zipfile.ZipFile(sglang_wheel(release)) as wheel:
        wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith("sglang/srt/debug_utils/")])
    return folder / "sglang"


class Peer:
    """SGLang's comparator in a process of its own."""

    def __init__(self, package: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("peer_worker.py")), str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"SGLang's comparator ended with exit code {self._process.wait()}")
        return line

    @contextlib.contextmanager
    def comparing(self, argv: Sequence[str], report: Path) -> Iterator[Callable[[], Outcome]]:
        """Starts a comparison; what is called in the block waits for its outcome."""
        assert self._process.stdin is not None
        request = {"argv": [*argv, "--report-path", str(report), "--output-format", "json"]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found: list[Outcome] = []

        def outcome() -> Outcome:
            if not found:
                answer = json.loads(self._read())
                found.append(_outcome(answer["exit_code"], report, answer["error"]))
            return found[0]

        try:
            yield outcome
        finally:
            outcome()  # an answer that nobody read would be taken for that of the next comparison

    def unreadable(self, report: Path) -> list[str]:
        """What SGLang's own record types refuse in a report."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"report": str(report)}) + "\n")
        self._process.stdin.flush()
        refused: list[str] = json.loads(self._read())["unreadable"]
        return refused

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def peer(package: Path) -> Iterator[Peer]:
    running = Peer(package)
    try:
        yield running
    finally:
        running.close()


def compare_with_both(running: Peer, argv: Sequence[str], folder: Path) -> tuple[Outcome, Outcome]:
    """What SGLang's comparator and ours say, each in its own process and both at the same time."""
    with running.comparing(argv, folder / "theirs.jsonl") as theirs:
        ours = compare_with_ours(argv, folder / "ours.jsonl")
        return theirs(), ours


def compare_with_ours(argv: Sequence[str], report: Path) -> Outcome:
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        code = main([*argv, "--report-path", str(report), "--output-format", "json", "--report-schema", "tensortap"])
    return _outcome(code, report, sink.getvalue() if code == 2 else None)


def _outcome(code: int, report: Path, error: str | None) -> Outcome:
    lines = report.read_text(encoding="utf-8").splitlines() if report.exists() else []
    records = tuple(json.loads(line) for line in lines)
    return Outcome(code, tuple(record for record in records if record["type"] in COMPARED_TYPES), records, error)


def category(finding: dict[str, Any]) -> str:
    """The category of a finding in SGLang's report, which does not say it."""
    kind = finding["type"]
    if kind == "comparison_error":
        return "errored"
    if finding["errors"]:
        return "failed"
    if kind == "comparison_skip":
        return "skipped"
    if kind == "comparison_non_tensor":
        return "passed" if finding["values_equal"] else "failed"
    checks = all(check["passed"] for check in finding["replicated_checks"])
    return "passed" if checks and finding["diff"] is not None and finding["diff"]["passed"] else "failed"


@dataclass(frozen=True)
class Disagreement:
    """One thing that the comparators do not say alike."""

    name: str
    what: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.what}: SGLang's {self.theirs!r}, ours {self.ours!r}"


def disagreements(theirs: Outcome, ours: Outcome) -> list[Disagreement]:
    """Everything in which two outcomes differ: findings, categories, metrics, exit codes."""
    if theirs.error is not None:
        # A crash there is a plain exit code 1 or a usage error here.
        return [] if ours.exit_code != 0 else [Disagreement("", "exit code", theirs.error, 0)]
    names = [[(one["name"], one["location"]["step"]) for one in outcome.findings] for outcome in (theirs, ours)]
    if names[0] != names[1]:
        return [Disagreement("", "findings", names[0], names[1])]
    found: list[Disagreement] = []
    for one, other in zip(theirs.findings, ours.findings, strict=True):
        found.extend(_compare_findings(one, other))
    if theirs.exit_code != ours.exit_code:
        found.append(Disagreement("", "exit code", theirs.exit_code, ours.exit_code))
    return found


def _compare_findings(theirs: dict[str, Any], ours: dict[str, Any]) -> list[Disagreement]:
    name = f"{theirs['name']} (step {theirs['location']['step']})"
    found = []
    if category(theirs) != ours["category"]:
        reason = theirs.get("exception_message") or theirs.get("reason"), ours.get("exception_message")
        found.append(Disagreement(name, "category", (category(theirs), reason[0]), (ours["category"], reason[1])))
    if theirs["type"] != ours["type"]:
        if not found:
            found.append(Disagreement(name, "type", theirs["type"], ours["type"]))
        return found
    for field in _same_fields(theirs):
        if theirs[field] != ours[field]:
            found.append(Disagreement(name, field, theirs[field], ours[field]))
    missing = sorted(set(theirs) - set(ours) - {"traced_plan"})
    if missing:
        found.append(Disagreement(name, "fields", missing, None))
    if theirs["type"] == "comparison_tensor":
        found.extend(_compare_differences(name, "diff", theirs["diff"], ours["diff"]))
        found.extend(_compare_differences(name, "diff_downcast", theirs["diff_downcast"], ours["diff_downcast"]))
        for side in ("baseline", "target"):
            for field in ("shape", "dtype"):
                if theirs[side][field] != ours[side][field]:
                    found.append(Disagreement(name, f"{side} {field}", theirs[side][field], ours[side][field]))
        checks = [
            [(check["axis"], check["group_index"], check["compared_index"], check["passed"]) for check in of]
            for of in (theirs["replicated_checks"], ours["replicated_checks"])
        ]
        if checks[0] != checks[1]:
            found.append(Disagreement(name, "replicated_checks", *checks))
    return found


def _same_fields(finding: dict[str, Any]) -> Sequence[str]:
    if finding["type"] == "comparison_tensor":
        return ("unified_shape", "shape_mismatch", "downcast_dtype")
    if finding["type"] == "comparison_skip":
        return ("reason", "available_side")
    if finding["type"] == "comparison_non_tensor":
        return ("values_equal", "baseline_value", "target_value", "baseline_type", "target_type")
    return ()


def _compare_differences(name: str, field: str, theirs: Any, ours: Any) -> list[Disagreement]:
    if theirs is None or ours is None:
        return [] if theirs is ours is None else [Disagreement(name, field, theirs, ours)]
    found = []
    for metric in ("rel_diff", "max_abs_diff"):
        if not _close(theirs[metric], ours[metric]):
            found.append(Disagreement(name, f"{field}.{metric}", theirs[metric], ours[metric]))
    for key in ("passed", "max_diff_coord"):
        if theirs[key] != ours[key]:
            found.append(Disagreement(name, f"{field}.{key}", theirs[key], ours[key]))
    return found


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other  # NaN and infinity are null in JSON
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-15)
