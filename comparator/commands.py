"""The commands beside a comparison: ``check RUN``, ``calibrate BASELINE VARIANT... -o FILE``, ``view REPORT.jsonl``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from comparator.api import open_others, open_side
from comparator.check.run import Finding, check_run, worst
from comparator.diagnosis import write_calibration
from comparator.errors import ComparatorError
from comparator.exit_codes import NO_VERDICT
from comparator.match.indexing import choose_rules
from comparator.options import Options
from comparator.pipeline import measure_noise
from comparator.prepared import prepare
from comparator.report.outputs import Outputs
from comparator.report.read import read_report
from comparator.report.runs import notes_of_run
from tensortap.printable import printable
from tensortap.progress import in_terminal


def check_parser() -> argparse.ArgumentParser:
    """The command line of ``check``."""
    parser = argparse.ArgumentParser(
        prog="comparator check",
        description="Say what one run shows to be wrong by itself: replicas that disagree, values that are not finite, "
        "sums and norms that are none.",
        epilog="exit code: 0 nothing is wrong, 1 something is, 2 the run cannot be read",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--filter", metavar="EXPRESSION", help="look at these records only, as in dumper ls --filter")
    parser.add_argument("--output-format", choices=["text", "json"], default="text")
    return parser


def check(arguments: argparse.Namespace) -> int:
    """Look at one run; raises ComparatorError."""
    run = open_side(arguments.run, "run")
    options = Options(filter=arguments.filter)
    found = [Finding(said) for said in notes_of_run(run, options, choose_rules(run, run, options)[0])] + check_run(
        run, options
    )
    for one in found:
        print(_as_json(one) if arguments.output_format == "json" else _as_text(one))
    if arguments.output_format == "text" and not found:
        print(f"nothing is wrong in {len(run.records)} records of {len(run.ranks)} ranks")
    return worst(found)


def _as_text(finding: Finding) -> str:
    step = "" if finding.step is None else f"step {finding.step}  "
    where = f"{step}{finding.tap}  " if finding.tap else ""
    return printable(f"{finding.said.severity:<8}{where}{finding.said.message}  [{finding.said.name}]")


def _as_json(finding: Finding) -> str:
    return json.dumps(
        {
            "type": "check",
            "severity": finding.said.severity,
            "name": finding.said.name,
            "tap": finding.tap or None,
            "step": finding.step,
            "message": finding.said.message,
        }
    )


def calibrate_parser() -> argparse.ArgumentParser:
    """The command line of ``calibrate``."""
    parser = argparse.ArgumentParser(
        prog="comparator calibrate",
        description="Measure floors from runs that should agree: repeats, other batches, other layouts. Floors are "
        "only ever raised above those that ship.",
        allow_abbrev=False,
    )
    parser.add_argument("baseline", metavar="BASELINE")
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    parser.add_argument("-o", "--output", required=True, metavar="FILE")
    parser.add_argument("--token-aligner", choices=["per_step", "concat_steps", "smart"], default="smart")
    return parser


def calibrate(arguments: argparse.Namespace) -> int:
    """Write the floors of noise runs to a file; raises ComparatorError."""
    baseline = open_side(arguments.baseline, "baseline")
    others = open_others(None, arguments.variants, None)
    prepared = prepare(baseline, baseline, Options(token_aligner=arguments.token_aligner), others=others)
    calibration = measure_noise(prepared)
    path = Path(arguments.output)
    try:
        write_calibration(calibration, path)
    except OSError as error:
        raise ComparatorError(f"cannot write {path}: {error.strerror}") from None
    raised = ", ".join(f"{name} {floor:.2g}" for name, floor in sorted(calibration.floors.items()))
    print(f"{path}: {len(calibration.floors)} floors above those that ship{': ' + raised if raised else ''}")
    return 0


WITHOUT_TENSORS = (
    "Profiles, histograms and scatter plots: they need the tensors, and this page was made from the JSON lines alone"
)


def view_parser() -> argparse.ArgumentParser:
    """The command line of ``view``."""
    parser = argparse.ArgumentParser(
        prog="comparator view",
        description="Make the page from the JSON lines of an earlier comparison (--report-path, --output-format json), "
        "without the runs. What needs tensors is left out.",
        epilog="exit code: 0 the page was written, 2 the report cannot be read or the page not written",
        allow_abbrev=False,
    )
    parser.add_argument("report", metavar="REPORT.jsonl")
    parser.add_argument("-o", "--html", metavar="FILE", help="default: the name of the report, with .html")
    parser.add_argument("--junit", metavar="FILE", help="write the findings as JUnit XML too")
    parser.add_argument("--markdown", metavar="FILE", help="write a summary in Markdown too")
    return parser


def view(arguments: argparse.Namespace) -> int:
    """Make a page of JSON lines; raises ComparatorError."""
    path = Path(arguments.report)
    asked = {**vars(arguments), "html": arguments.html or str(path.with_suffix(".html"))}
    outputs = Outputs(asked)
    for record in read_report(path, in_terminal()):
        outputs.add(record)
    failed = False
    for line in outputs.complete(missing=(WITHOUT_TENSORS,)):
        failed |= not line.startswith("report: ")
        print(printable(line), file=sys.stderr)
    return NO_VERDICT if failed else 0
