"""The flags of a comparison, and the options that they stand for. Those that SGLang's comparator has mean the same."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from comparator.arguments import load_override_config, parse_names, parse_override
from comparator.options import COARSE_DTYPES, Options
from comparator.verdict.criteria import parse_rules
from tensortap.command_line import SHELLS, PrintCompletion, PrintVersion

PRESETS: dict[str, dict[str, object]] = {
    "raw": {"grouping_skip_keys": []},
    "sglang_dev": {"grouping_skip_keys": ["rank"]},
    "sglang_megatron": {"grouping_skip_keys": ["rank", "step"], "token_aligner": "concat_steps"},
}


class _Preset(argparse.Action):
    """Sets the flags of a preset at its place on the command line: what comes later wins."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        for name, value in PRESETS[str(values)].items():
            setattr(namespace, name, value)


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() and text.isascii() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return number


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size of memory; write 512M or 2G")
    return int(float(found[1]) * 1024 ** " kmgt".index(found[2] or " "))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="comparator",
        description="Compare two recorded runs, tensor by tensor, and say where they part.",
        epilog="exit code: 0 the runs agree, 1 they do not, 2 no verdict: a usage error, a run that cannot be read, "
        "output that cannot be written",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("baseline", nargs="?", metavar="BASELINE", help="the run that is taken as right")
    add("target", nargs="?", metavar="TARGET", help="the run that is questioned")
    add("--baseline-path", metavar="DIR", help="the same as BASELINE")
    add("--target-path", metavar="DIR", help="the same as TARGET")
    add("--start-step", type=int, default=0, help="first step to compare (default: 0)")
    add("--end-step", type=int, default=1_000_000, help="last step to compare")
    add("--filter", metavar="EXPR",
        help="compare these records, as for dumper ls: 'name == \"attn_output\" and layer_id in [0, 1]' (between two "
        "dumps of SGLang's: a regular expression, searched in file names)")  # fmt: skip
    add(
        "--diff-threshold", nargs="*", metavar="REGEX PREDICATE", default=[],
        help="largest rel, or pairs of name pattern and criterion over rel, max_abs, mean_abs, relative_l2; the "
        "first whole match wins (default: what rounding explains, by the analysis of all pairs; integers equal)",
    )  # fmt: skip
    add("--token-aligner", choices=["concat_steps", "smart"],
        help="join all steps: in order (one request), or on token identity; default: step by step")  # fmt: skip
    add("--preset", choices=sorted(PRESETS), action=_Preset, help="sets of flags; raw compares rank by rank")
    add("--grouping-skip-keys", nargs="*", metavar="KEY", help="what does not tell tensors apart (default: rank)")
    add("--output-format", choices=["text", "json"], default="text")
    add("--report-schema", choices=["tensortap", "sglang"],
        help="fields of the JSON lines: ours, or those of SGLang's comparator and no others (default: sglang between "
        "two dumps of SGLang's, else tensortap)")  # fmt: skip
    add("--verbosity", choices=["minimal", "normal", "verbose"], default="normal",
        help="minimal: a line for each failure, and the summary")  # fmt: skip
    add("--only-failed", action="store_true", help="print failed and errored tensors only")
    add("-q", "--quiet", action="store_true", help="print the summary only")
    add("--max-fail", type=_positive, metavar="N", help="end the report after N failures")
    add("--exit-first", "-x", dest="max_fail", action="store_const", const=1, help="the same as --max-fail 1")
    add("--override-dims", action="append", default=[], metavar="NAME:DIMS",
        help="dims for both sides, for names that the regular expression NAME is found in")  # fmt: skip
    add("--override-baseline-dims", action="append", default=[], metavar="NAME:DIMS")
    add("--override-target-dims", action="append", default=[], metavar="NAME:DIMS")
    add("--override-config", metavar="YAML", help="overrides: [{match, dims, side}]")
    add("--map", metavar="YAML", help="names and transformations that make two frameworks' tensors comparable")
    add("--allow-skipped-pattern", metavar="REGEX",
        help="names that may be skipped (default: those that one side has nothing of)")  # fmt: skip
    add("--allow-failed-pattern", metavar="REGEX", help="names that may fail (default: none)")
    add("--report-path", metavar="FILE",
        help="write JSON lines there too (default: nowhere; between two dumps of SGLang's "
        "comparator_report.jsonl in the target, '' for none)")  # fmt: skip
    add("-o", "--html", metavar="FILE", help="write the report as one page that works offline (docs/report.md)")
    add("--junit", metavar="FILE", help="write the findings as JUnit XML")
    add("--markdown", metavar="FILE", help="write a summary in Markdown, for the summary page of a CI job")
    add("--explain", metavar="NAME", help="print the plan for the tensors of this name; compare nothing")
    add("--strict-taps", action="store_true", help="the same as --error tap-never-fired")
    add("--allow", action="append", default=[], metavar="NAME",
        help="a message of this name (docs/messages.md) does not make the comparison fail")  # fmt: skip
    add("--error", action="append", default=[], metavar="NAME", help="a message of this name makes it fail")
    add("--equal-nan", action="store_true", help="NaN equals NaN, and an infinity itself, at the same place")
    add("--min-matched", type=float, default=1.0, metavar="SHARE",
        help="smallest share of the tokens that both sides computed to have been compared (default: 1)")  # fmt: skip
    add("--reference", metavar="RUN", help="a run of the same model in higher precision: says which side is wrong")
    add("--noise", nargs="+", default=[], metavar="RUN",
        help="repeats or benign variants of the baseline: what they differ by is no fault")  # fmt: skip
    add("--activation-dtype", choices=COARSE_DTYPES,
        help="what quantised models round the inputs of matrix products to, which is no fault (default: what the runs "
        "say of their models)")  # fmt: skip
    add("--kv-cache-dtype", choices=COARSE_DTYPES, help="the same of cached keys and values")
    add("--calibration", metavar="FILE", help="floors that 'comparator calibrate' measured")
    add("--bitwise", action="store_true", help="tensors must be equal bit by bit")
    _add_pictures(parser)
    _add_how(parser)
    return parser


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokenizer", metavar="PATH", help="a local tokenizer: the page shows tokens as text")
    add("--pictures", type=_positive, default=Options().detail_limit, metavar="N",
        help="failures that the page and --png have pictures of, the first ones (default: %(default)s)")  # fmt: skip
    add("--png", metavar="DIR", help="draw the first failures into PNG files")
    add("--viz-bundle-details", action="store_true", help="draw every tensor into PNG files, in --viz-output-dir")
    add(
        "--viz-output-dir", metavar="DIR", default="/tmp/comparator_viz/", help="(default: %(default)s, if it is yours)"
    )
    add("--visualize-per-token", metavar="FILE", help="draw the errors of all tokens into one PNG file")


def _add_how(parser: argparse.ArgumentParser) -> None:
    """Flags that change how the work is done and not what is found, and those that end the program."""
    add = parser.add_argument
    add("--jobs", "-j", type=_positive, metavar="N",
        help="processes that compare (default: one for each core, where there is enough to compare)")  # fmt: skip
    add("--memory", type=_size, metavar="SIZE",
        help="memory that comparing may take, all processes together: 512M, 2G; larger tensors are read some rows at a "
        "time (default: what the control group, or the machine, has left)")  # fmt: skip
    add("--engine", choices=["local", "ray"], default="local",
        help="processes of this machine, or workers of a Ray cluster (default: %(default)s)")  # fmt: skip
    add("--address", metavar="ADDRESS", help="of the Ray cluster (default: RAY_ADDRESS, or the one here)")
    add("--follow", action="store_true",
        help="compare runs that are still being written, step by step, until both are complete")  # fmt: skip
    add("--quick", action="store_true",
        help="do not compare records with equal checksums (XXH3-64) on both sides (docs/comparing.md)")  # fmt: skip
    add("--version", action=PrintVersion, nargs=0, help="print the version of tensortap and end")
    add("--print-completion", choices=SHELLS, action=PrintCompletion, help="print a completion script for a shell")


def options_from(arguments: argparse.Namespace) -> Options:
    """The options that a parsed command line stands for; raises ComparatorError for those that make no sense."""
    overrides = [
        *(parse_override(text, "both") for text in arguments.override_dims),
        *(parse_override(text, "baseline") for text in arguments.override_baseline_dims),
        *(parse_override(text, "target") for text in arguments.override_target_dims),
    ]
    if arguments.override_config:
        overrides.extend(load_override_config(Path(arguments.override_config)))
    defaults = Options()
    keys = arguments.grouping_skip_keys
    return Options(
        start_step=arguments.start_step,
        end_step=arguments.end_step,
        filter=arguments.filter,
        diff_threshold=parse_rules(arguments.diff_threshold),
        overrides=tuple(overrides),
        allow_skipped_pattern=arguments.allow_skipped_pattern,
        allow_failed_pattern=arguments.allow_failed_pattern,
        strict_taps=arguments.strict_taps,
        allow=parse_names(arguments.allow, "--allow"),
        error=parse_names(arguments.error, "--error"),
        equal_nan=arguments.equal_nan,
        bitwise=arguments.bitwise,
        quick=arguments.quick,
        memory=arguments.memory,
        min_matched=arguments.min_matched,
        activation_dtype=arguments.activation_dtype,
        kv_cache_dtype=arguments.kv_cache_dtype,
        per_token=bool(arguments.visualize_per_token),
        detail_limit=arguments.pictures,
        map_config=Path(arguments.map) if arguments.map else None,
        grouping_skip_keys=defaults.grouping_skip_keys if keys is None else frozenset(keys),
        token_aligner=arguments.token_aligner or defaults.token_aligner,
    )
