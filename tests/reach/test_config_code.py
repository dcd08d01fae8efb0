"""Code of a config never hurts the model: what can fail is guarded, and what will fail is refused before."""

from __future__ import annotations

from pathlib import Path

import pytest

from dumper import open_run
from tests.reach.launched import launch, patcher, write

MODEL = """
    class Model:
        def forward(self, ids, cache=None):
            logits = [token * 2 for token in ids]
            return logits
    """
SERVE = "from model import Model\nprint('answer', Model().forward([1, 2]))\n"


def config(*edits: str) -> str:
    return "patches:\n  - target: model.Model.forward\n    edits:\n" + "".join(f"      - {edit}\n" for edit in edits)


@pytest.mark.parametrize(
    "edit",
    [
        "{at: entry, before: 'dumper.step({1: gone})'}",
        "{at: entry, dump: {name: x, value: gone}}",
        "{at: entry, step: {batch: gone}}",
        "{assign: logits, after: 'print(gone)'}",
    ],
)
def test_an_undefined_name_is_an_error(tmp_path: Path, edit: str) -> None:
    write(tmp_path, model=MODEL, serve=SERVE, config=config(edit))
    done = patcher(tmp_path, "check", "-c", "config.yaml")
    assert done.code == 1, done.out
    assert "'gone'" in done.out
    assert launch(tmp_path, "serve.py").code == 1


def test_an_undefined_name_in_a_preamble_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, model=MODEL, config=config("{assign: logits, dump: {name: x}}") + "    preamble: print(gone)\n")
    done = patcher(tmp_path, "check", "-c", "config.yaml")
    assert done.code == 1, done.out
    assert "'gone'" in done.out


def test_a_key_allows_names_that_come_from_elsewhere(tmp_path: Path) -> None:
    write(
        tmp_path,
        model=MODEL,
        serve="import builtins\nbuiltins.gone = 5\n" + SERVE,
        config=config("{assign: logits, dump: {name: x, value: gone}, undefined: [gone]}"),
    )
    assert patcher(tmp_path, "check", "-c", "config.yaml").code == 0
    done = launch(tmp_path, "serve.py")
    assert done.recorded() == {"x": 1}, done.err


FAILING = config(
    "{at: entry, step: {batch: ids.gone}}",
    "{assign: logits, dump: {name: bad, value: logits.gone}}",
    "{assign: logits, dump: {name: bad_tag, tag: logits.gone}}",
    "{assign: logits, dump: {name: good}}",
    "{at: return, end_step: {if: self.gone}}",
)


def test_what_fails_in_a_guarded_form_is_counted_and_shown(tmp_path: Path) -> None:
    write(tmp_path, model=MODEL, serve=SERVE + "Model().forward([3])\n", config=FAILING)
    done = launch(tmp_path, "serve.py")
    assert (done.code, done.out) == (0, "answer [2, 4]\n"), done.err
    run = open_run(done.run)
    assert [record.step for record in run.records if record.name == "good"] == [0, 1]
    assert "taps failed 8 times" in " ".join(problem.message for problem in run.problems)
    for tap in ("#1:step", "#2:bad", "#3:bad_tag", "#5:end_step"):
        assert done.err.count(f"tap model.Model.forward{tap}: ") == 1


STEPS = config(
    "{at: entry, step: {batch: $arguments, if: 'len(ids) > 1', kind: \"'long'\"}}",
    "{assign: logits, dump: {name: logits}}",
    "{at: return, end_step: true}",
)


def test_steps_in_the_short_form(tmp_path: Path) -> None:
    write(tmp_path, model=MODEL, serve=SERVE + "Model().forward([1])\nModel().forward([1, 2, 3])\n", config=STEPS)
    done = launch(tmp_path, "serve.py")
    assert done.recorded() == {"logits": 2}, done.err
    assert open_run(done.run).steps == (0, 1)


def test_arguments_are_those_of_the_function_as_it_is(tmp_path: Path) -> None:
    write(
        tmp_path,
        model="def f(a, /, b, *rest, c=3, **more):\n    x = 1\n    return x\n",
        serve="import model\nmodel.f(1, 2, 8, c=4, d=5)\n",
        config="""
            patches:
              - target: model.f
                edits: [{at: entry, dump: {name: given, value: 'sorted($arguments.items())'}}]
            """,
    )
    done = launch(tmp_path, "serve.py")
    (record,) = open_run(done.run).records
    assert record.value == [["a", 1], ["b", 2], ["c", 4], ["d", 5]]


def test_a_release_beyond_what_was_tried_is_said_and_goes_on(tmp_path: Path) -> None:
    write(tmp_path, model="__version__ = '1.9.0'\n" + "\n".join(line[4:] for line in MODEL.splitlines()), serve=SERVE)
    text = "requires: {model: '>=1.0'}\ntried: {model: '<=1.8'}\n" + config("{assign: logits, dump: {name: x}}")
    (tmp_path / "config.yaml").write_text(text)
    done = patcher(tmp_path, "check", "-c", "config.yaml")
    assert done.code == 0, done.out
    assert "not tried with this release" in done.out
    done = launch(tmp_path, "serve.py")
    assert done.recorded() == {"x": 1}
    assert "not tried with this release" in done.err
