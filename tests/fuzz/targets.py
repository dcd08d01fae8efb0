"""The parsers of dumper, comparator and patcher, each with inputs and with the errors that it may answer with."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st

from comparator.arguments import load_override_config, parse_override
from comparator.diagnosis.calibration import CalibrationError, read_calibration
from comparator.errors import ComparatorError
from comparator.match.map import compile_rules, load_map, parse_template
from comparator.patterns import compiled
from comparator.verdict.criteria import compile_predicate, parse_rules
from dumper.control import changes, files
from dumper.control.controller import living, pending_changes, read_ranks
from dumper.control.participant import Participant, Place
from dumper.format import json_files
from dumper.format.frames import FormatError
from dumper.format.index import decode_index
from dumper.format.layouts import decode_layout, encode_layout
from dumper.format.status import read_status
from dumper.layout import SequenceSpan, TokenLayout
from dumper.readers.sglang.pt_files import parse_file_name, typed
from dumper.readers.streams.scan import scan
from dumper.reading.indexing import IndexingError, parse_index
from dumper.reading.open import open_run
from dumper.reading.protocol import RunError
from dumper.recording.recorder import Recorder
from dumper.rules.expressions import Expression, ExpressionError
from dumper.rules.levels import LevelRules
from dumper.rules.step_rule import StepRule
from dumper.settings import Settings, SettingsError, checked
from dumper.values.plain import decode_value, encode_value
from dumper.writing.run_id import join_run
from patcher.config.load import parse_config
from patcher.errors import PatchError
from patcher.match.pattern import parse_pattern
from tensortap.dims import DimsError, parse_dims
from tests.fuzz.mutations import PLAIN, bytes_like, changed_plain, text_like
from tests.fuzz.streams import examples, read_stream, without_checksums


@dataclass(frozen=True)
class Target:
    """A parser under test."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    """Gives the input to the parser and uses what comes out."""
    errors: tuple[type[Exception], ...] = ()
    """What the parser may raise; anything else is a fault."""

    def run(self, given: Any) -> bool:
        """Whether the input was accepted."""
        try:
            self.read(given)
        except self.errors:
            return False
        return True


# Files of a run

_STREAMS = examples()
_LAYOUT = encode_layout(
    TokenLayout(
        "extend", (SequenceSpan("a", 0, 2),), 3, token_ids=np.arange(3), row_sequence=np.array([0, 0, -1], np.int32)
    )
)
"""As ``step`` frames hold it."""


def _read_stream(data: bytes) -> None:
    with without_checksums():
        read_stream(data)


def _recorded() -> dict[str, bytes]:
    """The files of a small run."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Settings(enable=True, control=False, dir=folder))
        recorder.step(layout=TokenLayout("extend", (SequenceSpan("a", 0, 2),), 2), part=1)
        recorder.dump("x", np.arange(6.0).reshape(2, 3), dims="t h[tp]", layer_id=1)
        recorder.dump("y", {"a": [1, None]}, level="stats")
        recorder.close()
        return {path.name: path.read_bytes() for path in recorder.settings.run_path.iterdir() if path.is_file()}


_FILES = _recorded()
_STREAM_NAME = "rank-00000.msgpack"
_INDEX = scan(Path(_STREAM_NAME), _FILES[_STREAM_NAME])[0].encode()
_STATUS = _FILES["rank-00000.status"]


@contextmanager
def _folder(content: dict[str, bytes]) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        for name, data in content.items():
            (folder / name).write_bytes(data)
        yield folder
    finally:
        shutil.rmtree(folder)


def _read_run(changed: dict[str, bytes]) -> None:
    with _folder({**_FILES, **changed}) as folder:
        run = open_run(folder)
        for record in run.records:
            assert record.is_intact() in (True, False)
        for step, rank in itertools.product(run.steps[:5], run.ranks[:5]):
            try:
                run.layout(step, rank)
            except FormatError:
                assert run.path
        assert run.losses >= 0
        assert all(problem.message for problem in run.problems)
        assert repr(run).isprintable()
        run._repr_html_()  # type: ignore[attr-defined]


def _decode_layout(encoded: Any) -> None:
    layout = decode_layout(encoded)
    assert len(layout.sequences) == len(encoded["sequences"])


def _join_run(data: bytes) -> None:
    with _folder({"run-id": data}) as folder:
        identity = join_run(folder, 0o600)
        assert len(identity) == 32
        assert join_run(folder, 0o600) == identity


def _read_settings(texts: dict[str, str]) -> None:
    Settings.from_environment({f"TENSORTAP_{key.upper()}": text for key, text in texts.items()})


# Control

_COMMAND = {"changes": {"enable": True, "filter": "layer_id == 1", "steps": "next 2"}, "timeout": 30.0}
_RANK = {
    "rank": 0,
    "world_size": 1,
    "group": "0",
    "host": "elsewhere",
    "pid": 1,
    "step": 3,
    "steps_per_second": 1.0,
    "applied": 0,
    "applied_at": None,
    "ended": False,
    "time": 0.0,
    "state": {"settings": {"enable": True}},
}
_CONTROL = {
    "latest": {"generation": 1},
    "000001.command.json": _COMMAND,
    "000001.plan.json": {"effective": {"0": 2}},
    "000001.outcome.json": {"commit": True},
    "rank-00000.json": _RANK,
}


class _Controlled:
    """What a rank would record with."""

    def apply(self, settings: dict[str, Any]) -> None:
        Settings().changed(**settings)

    def state(self) -> dict[str, Any]:
        return {"settings": {}}


def _control(content: dict[str, Any]) -> None:
    """A rank meets these files, and whoever asks for the status of the run."""
    with _folder({}) as folder:
        control = folder / "control"
        control.mkdir()
        clock = itertools.count()
        participant = Participant(
            control, Place(0, 1), _Controlled(), now=lambda: float(next(clock)), sleep=lambda seconds: None
        )
        for name, value in content.items() if isinstance(content, dict) else ():
            if name in _CONTROL:
                (control / name).write_text(json.dumps(value, default=repr), encoding="utf-8", errors="replace")
        for step in range(4):
            try:
                participant.poll()
            except Exception:  # the watcher's thread says so, and goes on
                assert files.latest(control).exists()
            participant.at_step(step)
        ranks = read_ranks(folder)
        living(ranks)
        for rank in ranks:
            pending_changes(folder, rank)


def _json_file(data: bytes) -> None:
    with _folder({"file": data}) as folder:
        assert isinstance(json_files.read(folder / "file"), dict | None)
        assert files.read_latest(folder) == 0


_CHANGES = changed_plain(_COMMAND["changes"]).map(lambda given: given if isinstance(given, dict) else {"level": given})


def _check_changes(given: Any) -> None:
    assert changes.describe(changes.resolve(changes.check(given), 3))


# SGLang's dumps

_PT_NAME = "step=0___rank=0___dump_index=1___name=x___layer_id=3.pt"


def _pt_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"value": torch.arange(3.0), "meta": {"dims": "t h", "sglang_parallel_info": {"tp_rank": 0}}}, buffer)
    return buffer.getvalue()


def _pt_directory(given: tuple[str, bytes]) -> None:
    name, data = given
    name = "".join(character for character in name if character not in "/\0").encode("utf-8", "replace").decode()[:60]
    with _folder({_PT_NAME: data, name.strip(".") + ".pt": data}) as folder:
        run = open_run(folder)
        for record in run.records:
            if record.error is None and record.kind == "tensor":
                record.array()
        assert all(problem.message for problem in run.problems)


def _pt_name(name: str) -> None:
    for text in parse_file_name(name).values():
        typed(text)


# Files of the comparator and the patcher

_CALIBRATION = {"format": "tensortap-calibration", "version": 1, "floors": {"attn_output layer 3": 0.1}}
_MAP = {
    "map": [
        {
            "baseline": "model.layers.{i}.self_attn.q_proj",
            "target": "qkv, layer_id={i}",
            "baseline_dims": "b s h",
            "target_slice": {"dim": "h", "sizes": [4, 1, 1], "part": 0},
        },
        {"baseline": "expert.{e}", "target": "expert, id={g}", "baseline_values": {"g": "e + ep * 16"}},
    ]
}
_OVERRIDES = {"overrides": [{"match": "x.*", "dims": "t h[tp]", "side": "both"}]}
_PATCHES = {
    "requires": {"sglang": ">=0.5.9,<=0.5.23"},
    "patches": [
        {
            "target": "package.module.Class.forward",
            "edits": [
                {"match": "x = self.f(...)", "dump": {"name": "x", "value": "x", "dims": "t h", "layer_id": "self.i"}},
                {"match": "return $y", "before": "print($y)"},
            ],
        }
    ],
}


def _yaml(example: Any) -> st.SearchStrategy[str]:
    written = changed_plain(example).map(lambda value: yaml.safe_dump(value, allow_unicode=True))
    return written | text_like(yaml.safe_dump(example))


def _in_file(read: Callable[[Path], object]) -> Callable[[str], None]:
    def read_text(text: str) -> None:
        with _folder({"file": text.encode("utf-8", "surrogatepass")}) as folder:
            read(folder / "file")

    return read_text


def _pattern(text: str) -> None:
    parse_pattern(text)


def _text(name: str, read: Callable[[str], object], error: type[Exception], *valid: str) -> Target:
    return Target(name, text_like(*valid), read, (error,))


TARGETS = (
    Target("frames of a rank (checksums right)", bytes_like(*_STREAMS), _read_stream),
    Target("file of a rank", bytes_like(_FILES[_STREAM_NAME]), lambda data: _read_run({_STREAM_NAME: data})),
    Target("index", bytes_like(_INDEX), decode_index, (FormatError,)),
    Target(
        "status file", bytes_like(_STATUS), lambda data: (read_status(data), _read_run({"rank-00000.status": data}))
    ),
    Target("run id", bytes_like(_FILES["run-id"], b'{"id": "' + b"0" * 32 + b'", "processes": []}'), _join_run),
    Target("value as msgpack", bytes_like(encode_value({"a": [1, 2.5, None, 2**70, 1j]})), decode_value, (ValueError,)),
    Target(
        "token layout",
        changed_plain(_LAYOUT) | PLAIN,
        _decode_layout,
        (KeyError, TypeError, ValueError, IndexError),  # a MalformedLayoutError of the run
    ),
    Target("control folder", changed_plain(_CONTROL), _control),
    Target("control JSON", bytes_like(json.dumps(_COMMAND).encode()), _json_file),
    Target("changes of a request", _CHANGES, _check_changes, (ValueError,)),
    _text("name of a .pt file", _pt_name, ValueError, _PT_NAME, "forward_pass_id=2___rank=0___name=y.pt"),
    Target(".pt directory", st.tuples(text_like(_PT_NAME), bytes_like(_pt_file())), _pt_directory, (RunError,)),
    _text("TENSORTAP_PARALLEL", lambda text: checked("parallel", text), SettingsError, "tp=0/2,dp=1/4", "a=0/1"),
    Target("parallel=…", PLAIN, lambda value: checked("parallel", value), (SettingsError,)),
    Target(
        "settings",
        st.dictionaries(
            st.sampled_from(list(Settings.__dataclass_fields__)),
            text_like("1", "512MiB", "sample(rows=3) if layer_id > 2", "first 5, every 3 from 2", "name == 'x'"),
        ),
        _read_settings,
    ),
    _text(
        "filter",
        lambda text: Expression(text).holds({"name": "x", "layer_id": 3, "step": None}),
        ExpressionError,
        "layer_id in [0, 1] and name.startswith('a')",
        "not (step % 3 == 1) or search('a+', name)",
    ),
    _text("level rules", LevelRules.parse, ValueError, "hash if layer_id > 3; sample(stride=16)", "stats"),
    _text("step rule", lambda text: StepRule.parse(text).wants(7), ValueError, "first 5, every 3 from 2", "10-20, 30-"),
    _text("index of a value", lambda text: parse_index(text).of_array(np.zeros((3, 4))), IndexingError, "[0,:5,...]"),
    _text("dims", parse_dims, DimsError, "t h[attn_tp:partial] # tp:replicated", "b s (heads*dim)[tp,ep]"),
    _text("pattern of names", compiled, ComparatorError, "attn_.*|mlp[0-9]{1,3}"),
    _text("criterion", compile_predicate, ComparatorError, "rel <= 0.01 and max_abs < 3"),
    _text("--diff-threshold", lambda text: parse_rules([text, text]), ComparatorError, "0.1", "rel <= 0.01"),
    _text("--override-dims", lambda text: parse_override(text, "both"), ComparatorError, "x:t h[tp]"),
    _text("template of a map", lambda text: parse_template(text, "here"), ComparatorError, "layers.{layer}.mlp"),
    Target(
        "--map",
        _yaml(_MAP),
        _in_file(lambda path: compile_rules(load_map(path), "target", "here")),
        (ComparatorError,),
    ),
    Target("--override-config", _yaml(_OVERRIDES), _in_file(load_override_config), (ComparatorError,)),
    Target(
        "calibration file",
        changed_plain(_CALIBRATION).map(lambda value: json.dumps(value, default=repr))
        | text_like(json.dumps(_CALIBRATION)),
        _in_file(read_calibration),
        (CalibrationError,),
    ),
    Target("patch config", _yaml(_PATCHES), parse_config, (PatchError,)),
    _text("pattern of syntax", _pattern, PatchError, "x = self.f(..., key=$v)", "if $a: ...", "for $x in ...:"),
)
