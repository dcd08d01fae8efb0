"""SGLang's own tests against this project: ``python -m tests.differential.sglang_tests CHECKOUT``.

CHECKOUT is a checkout of SGLang's repository of about the installed release; only ``test/registered/debug_utils`` is
read, from a copy in a temporary folder, and nothing is fetched. Every suite first runs as it is, which shows which of
its tests pass here at all. The exit code is 1 when a test fails that no reason is given for in ``KNOWN``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[2]
TESTS = Path("registered/debug_utils")

_NAMES = "looks inside SGLang's dumper"
_FILES = "looks at details of SGLang's files, which a run says otherwise"
_CLEAN = "deletes directories beside the run there; here the files of ranks in the run directory"
KNOWN: Mapping[str, str] = {
    "test_error_record_contains_dims_hint": "looks for a sentence of SGLang's hint; ours says it in other words",
    "test_may_enable_true_when_server_port_set": "the port of the server (reuse) is not ours",
    "test_file_disabled": "refused here, with a word on what records into memory",
    "test_console_enabled_by_default": "nothing is printed here",
    "test_capture_output_nested_raises": "blocks may be inside each other here",
    "TestStaticMetadata::": _NAMES,
    "test_dump_grad_captures_step": _NAMES,
    "test_no_cleanup_when_config_false": _NAMES,
    "test_recompute_status_recompute": _NAMES,
    "test_recompute_status_original": _NAMES,
    "test_filter_expr_syntax_error": "an error in the model there; an error of configure here",
    "test_parameter_saved_as_parameter": "a tensor here",
    "test_dims_grad_override": _FILES,
    "test_grad_hook_has_no_recompute_status": _FILES,
    "TestCleanup::": _CLEAN,
    "test_cleanup_previous_re_triggers_after_reset": _CLEAN,
    "test_ctx_rejects": "an error where the function is decorated there; allowed here",
}
"""Part of a test's id, and why it cannot pass here."""


@dataclass(frozen=True)
class Suite:
    """Tests that run against one stand-in."""

    label: str
    stands_in: str
    paths: tuple[str, ...]


SUITES = (
    Suite("comparator, end to end", "comparator", ("comparator/test_entrypoint.py",)),
    Suite("dumper, and its control over HTTP", "dumper", ("test_dumper.py",)),
    Suite("source patcher, module importable", "patcher", ("source_patcher",)),
    Suite("source patcher, module only in sys.modules", "patcher-in-memory", ("source_patcher",)),
)


@dataclass(frozen=True)
class Outcome:
    """One test that reached our code."""

    test: str
    passed: bool
    said: str

    @property
    def reason(self) -> str | None:
        """Why it is known not to pass."""
        return next((reason for part, reason in KNOWN.items() if part in self.test), None)


def copy_tests(checkout: Path, folder: Path) -> Path:
    """SGLang's tests in a tree of packages of its own: there is a package ``comparator`` among them."""
    tree = folder / "test"
    shutil.copytree(checkout / "test" / TESTS, tree / TESTS)
    for inner in (tree / TESTS.parent, tree / TESTS, tree / TESTS / "source_patcher"):
        (inner / "__init__.py").touch()
    return tree


def run(suite: Suite, tree: Path, stands_in: str, results: Path, limit: float) -> list[Outcome]:
    """Run the tests of a suite in a process of their own; the outcomes of those that reached our code.

    With ``nothing`` in the place of SGLang's program, of all that are not skipped.
    """
    paths = [str(tree / TESTS / path) for path in suite.paths]
    results.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TENSORTAP_STANDS_IN": stands_in,
        "TENSORTAP_RESULTS": str(results),
        "TENSORTAP_SAMPLE": str(tree / TESTS / "source_patcher/conftest.py"),
    }
    plugins = ["-p", "tests.differential.sglang_tests_plugin", "-p", "no:cacheprovider"]
    options = ["-c", os.devnull, "--rootdir", str(tree), "-q", "--tb=line", *plugins]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths],
        env=environment,
        cwd=tree,
        timeout=limit,
        check=False,
        capture_output=True,
        text=True,
    )
    if ended.returncode not in (0, 1) or not results.exists():
        raise SystemExit(f"SGLang's tests did not run ({suite.label}):\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}")
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return [
        Outcome(line["test"], line["outcome"] == "passed", " ".join(line["reason"]))
        for line in lines
        if line["outcome"] != "skipped" and (line["reached"] or stands_in == "nothing")
    ]


def report(found: Mapping[Suite, tuple[Sequence[Outcome], Sequence[Outcome]]]) -> int:
    """Print the table and what does not pass; returns the number of failures without a reason."""
    table = Table("tests of SGLang's", "pass as they are", "reach our code", "pass with ours")
    for suite, (theirs, ours) in found.items():
        counts = (sum(one.passed for one in theirs), len(ours), sum(one.passed for one in ours))
        table.add_row(suite.label, *map(str, counts))
    console = Console(highlight=False)
    console.print(table)
    unexplained = 0
    for suite, (theirs, ours) in found.items():
        unsound = {one.test for one in theirs if not one.passed}
        for one in ours:
            if one.passed or one.test in unsound:
                continue
            unexplained += one.reason is None
            name = one.test.split("/")[-1]
            console.print(f"{suite.label}: {name}: {one.reason or 'NOT EXPLAINED: ' + one.said}", markup=False)
    return unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of SGLang's repository")
    parser.add_argument("--limit", type=float, default=1200, help="seconds that one suite may take")
    arguments = parser.parse_args()
    if not (arguments.checkout / "test" / TESTS).is_dir():
        parser.error(f"there is no test/{TESTS} in {arguments.checkout}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tests(arguments.checkout, Path(folder))
        results = Path(folder, "results.jsonl")
        for suite in SUITES:
            theirs = run(suite, tree, "nothing", results, arguments.limit)
            found[suite] = theirs, run(suite, tree, suite.stands_in, results, arguments.limit)
    return 1 if report(found) else 0


if __name__ == "__main__":
    sys.exit(main())
