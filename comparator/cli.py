"""``python -m comparator BASELINE TARGET``: compare two recorded runs.

Exit codes: 0 the runs agree, 1 they do not, 2 there is no verdict: a usage error, a run that cannot be read, output
that cannot be written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from comparator.api import open_others, open_sides
from comparator.errors import ComparatorError
from comparator.exit_codes import INTERRUPTED, run_command
from comparator.flags import build_parser, options_from
from comparator.options import Options, Side
from dumper.storage.addresses import place_of, shown_address
from tensortap.command_line import drop_output
from tensortap.printable import printable
from tensortap.progress import in_terminal

if TYPE_CHECKING:
    from rich.console import Console

    from comparator.engine.protocol import Engine
    from comparator.pipeline import Comparing
    from comparator.prepared import Prepared
    from comparator.report.outputs import Outputs
    from comparator.report.records import ReportRecord
    from comparator.report.reporters import PlainConsole, Reporter, Schema
    from comparator.report.runs import Tally
    from comparator.report.strips import TokenStrips
    from comparator.verdict.judge import Said
    from dumper.reading.protocol import Run
    from dumper.storage.places import Place, Workers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, parser = _command(arguments)
    parsed = parser().parse_args(arguments[1:] if command is not run else arguments)
    return run_command(lambda: command(parsed))


def _command(
    arguments: Sequence[str],
) -> tuple[Callable[[argparse.Namespace], int], Callable[[], argparse.ArgumentParser]]:
    """What is to be done, and its parser: a word in front, or a comparison of two runs."""
    word = arguments[0] if arguments else ""
    if word in ("check", "calibrate", "view"):
        from comparator import commands

        return {
            "check": (commands.check, commands.check_parser),
            "calibrate": (commands.calibrate, commands.calibrate_parser),
            "view": (commands.view, commands.view_parser),
        }[word]
    return run, build_parser


def run(arguments: argparse.Namespace) -> int:
    """Compare as the arguments say; raises ComparatorError."""
    if arguments.engine == "ray":
        from comparator.elsewhere import on_cluster
        from comparator.engine.cluster_connection import connected
        from comparator.engine.cluster_files import FilesOnCluster

        with connected(arguments.address):
            return _compare(arguments, on_cluster, FilesOnCluster(arguments.jobs))
    if arguments.address is not None:
        raise ComparatorError("--address is of a Ray cluster; it goes with --engine ray")
    return _compare(arguments, _on_this_machine)


def _on_this_machine(prepared: Prepared, jobs: int | None) -> Engine | None:
    if not (prepared.baseline.is_stored or prepared.target.is_stored):
        return None
    from comparator.elsewhere import on_this_machine

    return on_this_machine(prepared, jobs)


def _compare(
    arguments: argparse.Namespace,
    engine_of: Callable[[Prepared, int | None], Engine | None],
    workers: Workers | None = None,
) -> int:
    from comparator.pipeline import begin
    from comparator.prepared import prepare
    from comparator.report.environment import environment_lines
    from comparator.report.outputs import Outputs
    from comparator.report.records import ConfigRecord
    from comparator.report.reporters import PlainConsole, ReportFile, sent_on, terminal
    from comparator.report.runs import Tally, input_ids, rank_info, run_notes

    baseline_path = _one_path(arguments.baseline_path, arguments.baseline, "baseline")
    target_path = _one_path(arguments.target_path, arguments.target, "target")
    options = options_from(arguments)
    console = terminal()
    progress = in_terminal(None if isinstance(console, PlainConsole) or not sys.stdout.isatty() else console)
    stopped, shown = False, None
    if arguments.follow:
        options, stopped, shown = _followed(arguments, options, (baseline_path, target_path), console)
    baseline, target = open_sides(baseline_path, target_path, progress, workers)
    others = open_others(arguments.reference, arguments.noise, arguments.calibration, workers)
    both_sglang = baseline.has_named_files and target.has_named_files
    report_path = _report_path(arguments.report_path, target.path if both_sglang else None)
    outputs = Outputs(vars(arguments))
    prepared = prepare(
        baseline, target, _needed(options, arguments, report_path, outputs), others=others, progress=progress
    )
    if arguments.explain:
        return _explained(prepared, arguments.explain)
    schema: Schema = arguments.report_schema or ("sglang" if both_sglang else "tensortap")
    printed = shown or _printed(arguments, console, schema)
    reporters: list[Reporter] = [printed]
    said = prepared.notes()
    runs = (prepared.baseline, prepared.target)
    tally = Tally(
        prepared.options, prepared.rules, said, prepared.unused, environment=environment_lines(*runs), runs=runs
    )
    with ExitStack() as stack, sent_on(console):
        if report_path is not None:
            file = ReportFile(report_path, schema)
            stack.callback(file.close)
            reporters.append(file)
        engine = engine_of(prepared, arguments.jobs)
        comparing = begin(prepared, progress, draws=outputs.draws, jobs=arguments.jobs, engine=engine)
        if outputs:
            from comparator.report.sources import sources

            outputs.follow(lambda: comparing.picture, sources(baseline, target))
            reporters.append(outputs)
        opening = [
            ConfigRecord(config=_that_matters(vars(arguments))),
            rank_info("baseline", baseline),
            rank_info("target", target),
            input_ids("baseline", baseline, options),
            input_ids("target", target, options),
            run_notes("baseline", said["baseline"]),
            run_notes("target", said["target"]),
            run_notes(None, [*_of_dumps(baseline_path, target_path, prepared, options), *prepared.unused]),
        ]
        for record in opening:
            for reporter in reporters if record is not None else []:
                reporter.report(record)  # type: ignore[arg-type]
        _report_findings(comparing, tally, reporters, printed, console, arguments.max_fail)
        if report_path is not None:
            file.complete()
    if report_path is not None:
        print(f"report: {printable(str(report_path))}", file=sys.stderr)
    if outputs:
        outputs.show_tokens(_strips(comparing, prepared, arguments.tokenizer))
    for line in outputs.complete():
        print(printable(line), file=sys.stderr)
    if comparing.interrupted:
        return INTERRUPTED
    return tally.exit_code if not stopped else max(tally.exit_code, 1)


def _needed(options: Options, arguments: argparse.Namespace, report: Path | None, outputs: Outputs) -> Options:
    """Only what is written for machines has samples, and text for people no list of records either."""
    samples = arguments.output_format == "json" or report is not None
    return replace(options, samples=samples, records=samples or bool(outputs))


def _explained(prepared: Prepared, name: str) -> int:
    from comparator.report.explain import explain

    code = 0
    for line in explain(prepared.pairs, name, prepared.select, prepared.planner):
        print(printable(line))
        code = 1 if line.startswith("  error: ") else code
    return code


def _followed(
    arguments: argparse.Namespace, options: Options, paths: tuple[str, str], console: Console | PlainConsole
) -> tuple[Options, bool, Reporter]:
    """Report the steps of runs that are being written, until they are complete.

    Returns the options for what is compared then, whether ``--max-fail`` ended it before, and what goes on printing.
    """
    from comparator.follow import Once, check_follow, findings_of, follow
    from comparator.report.runs import Tally
    from comparator.rules import OUR_RULES

    check_follow(options, paths)
    printed = Once(_printed(arguments, console, arguments.report_schema or "tensortap"))
    tally = Tally(options, OUR_RULES, {"baseline": (), "target": ()})
    try:
        for steps in follow(paths, options):
            for finding in findings_of(steps, options, arguments.jobs):
                tally.add(finding)
                printed.report(finding)
                if arguments.max_fail is not None and tally.failures >= arguments.max_fail:
                    return replace(options, end_step=steps.last), True, printed
            sys.stdout.flush()
    except KeyboardInterrupt:
        tally.interrupt()
        printed.report(tally.summary())
        raise
    return options, False, printed


def _that_matters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a report depends on."""
    return {name: value for name, value in arguments.items() if name not in ("jobs", "engine", "address")}


def _strips(comparing: Comparing, prepared: Prepared, tokenizer: str | None) -> TokenStrips | None:
    """What is known of single tokens; with the ids alone where the tokenizer cannot be used."""
    from comparator.report.strips import open_tokenizer, token_strips, with_texts

    analysis = comparing.analysis
    places = prepared.contexts["target"].world
    strips = None if analysis is None else token_strips(analysis, prepared.planner.token_ids(), places)
    if strips is None or tokenizer is None:
        return strips
    try:
        return with_texts(strips, open_tokenizer(tokenizer))
    except ComparatorError as error:
        print(printable(f"{error}; the report shows token ids"), file=sys.stderr)
        return strips


def _of_dumps(baseline: str, target: str, prepared: Prepared, options: Options) -> Sequence[Said]:
    """What is to be known of two dumps of SGLang's; nothing where a side is a run of ours."""
    runs: dict[Side, Run] = {"baseline": prepared.baseline, "target": prepared.target}
    if not all(run.has_named_files for run in runs.values()):
        return ()
    from comparator.report.runs import notes_of_dumps

    return notes_of_dumps({"baseline": place_of(baseline), "target": place_of(target)}, runs, options)


def _printed(arguments: argparse.Namespace, console: Console | PlainConsole, schema: Schema) -> Reporter:
    """What goes to standard output."""
    from comparator.report.reporters import JsonReporter, TextReporter

    if arguments.output_format == "json":
        return JsonReporter(schema)
    return TextReporter(
        console,
        arguments.verbosity,
        only_failed=arguments.only_failed,
        quiet=arguments.quiet,
        headings=schema == "sglang",
    )


def _report_findings(
    comparing: Comparing,
    tally: Tally,
    reporters: list[Reporter],
    printed: Reporter,
    console: Console | PlainConsole,
    most_failures: int | None,
) -> None:
    """Report every finding, then the diagnosis, then the summary.

    When the reader of the output goes away once everything is measured, the rest is not printed and the verdict stays.
    """
    from comparator.report.diagnosis import diagnosis_record
    from comparator.report.reporters import PlainConsole
    from comparator.report.runs import accounts_record

    def records() -> Iterator[ReportRecord]:
        for finding in comparing:
            if comparing.measured and isinstance(console, PlainConsole):
                console.at_once = False  # what is left comes without waiting
            tally.add(finding)
            yield finding
            if most_failures is not None and tally.failures >= most_failures:
                tally.stop(most_failures)
                yield tally.summary(comparing.diagnosis)
                return
        if comparing.interrupted:
            tally.interrupt()
        else:
            tally.conclude(comparing.accounts)
        diagnosis = comparing.diagnosis
        if diagnosis is not None:
            diagnosis, around = tally.as_far_as_it_matters(diagnosis), tally.around(diagnosis)
            yield diagnosis_record(
                diagnosis, comparing.tap_ids, comparing.reference, bitwise=tally.options.bitwise, around=around
            )
        yield accounts_record(comparing.accounts)
        yield tally.summary(comparing.diagnosis)

    def show(record: ReportRecord) -> None:
        for reporter in list(reporters):
            try:
                reporter.report(record)
            except BrokenPipeError:
                if not comparing.measured:
                    raise
                drop_output()
                reporters.remove(printed)

    def send_on() -> None:
        try:
            if isinstance(console, PlainConsole):
                console.send_on()
            sys.stdout.flush()
        except BrokenPipeError:
            if not comparing.measured:
                raise
            drop_output()

    try:
        for record in records():
            show(record)
        send_on()
    except KeyboardInterrupt:
        comparing.interrupted = True
        tally.interrupt()
        show(tally.summary(comparing.diagnosis))


def _one_path(flag: str | None, positional: str | None, what: str) -> str:
    if flag and positional:
        twice = f"{shown_address(positional)!r} and --{what}-path {shown_address(flag)!r}"
        raise ComparatorError(f"the {what} is given twice: {twice}")
    path = flag or positional
    if not path:
        raise ComparatorError(f"no {what}; usage: comparator BASELINE TARGET")
    return path


def _report_path(argument: str | None, dump: Place | None) -> Path | None:
    """Where a report file goes: where it was asked for, and else, as SGLang's comparator does, into its dumps."""
    if argument is not None:
        return Path(argument) if argument else None
    return dump / "comparator_report.jsonl" if isinstance(dump, Path) and os.access(dump, os.W_OK) else None
