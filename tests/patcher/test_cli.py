"""The command line: check, diff, list, suggest, schema."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from patcher import cli
from patcher.check import check_loaded
from patcher.cli import main
from patcher.config.load import parse_config
from patcher.source.modules import ModuleFinder
from patcher.suggest import suggest_config
from patcher.tappable import function_index, tappable_places
from tests.patcher.support import block, edits_config

MODEL = block('''
    """A model file."""
    import torch.distributed as dist
    from absent_dependency import Linear, tensor_model_parallel_all_reduce

    class Attention:
        def __init__(self, layer_id):
            self.layer_id = layer_id
            self.core = Linear(layer_id=layer_id)
        def forward(self, x):
            return self.core(x)

    class Layer:
        def __init__(self, config, layer_id: int):
            self.self_attn = Attention(layer_id=layer_id)
            self.mlp = Linear(config)
            self.norm = Linear(config)

        def forward(self, hidden_states, residual):
            hidden_states, residual = self.norm(hidden_states, residual)
            hidden_states = self.self_attn(hidden_states)
            hidden_states, residual = self.boundary.finish(hidden_states, residual)
            if residual is None:
                return self.forward_mlp(hidden_states)
            return self.forward_mlp(self.norm(hidden_states))

        def forward_mlp(self, hidden_states):
            out, _ = self.mlp(hidden_states)
            dist.all_reduce(out)
            if out is None:
                out = tensor_model_parallel_all_reduce(self.mlp(hidden_states, 2))
            return out

        def load_weights(self, weights):
            return self.mlp(weights)
''')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model_file.py").write_text(MODEL)
    (tmp_path / "taps.yaml").write_text(
        edits_config(
            "- {match: out = ..., nth: 1, after: 'out = out'}\n- {at: return, dump: {name: out}}",
            "model_file.Layer.forward",
        ).replace("out = ...", "hidden_states = self.self_attn(...)")
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_says_where_each_edit_lands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", "taps.yaml"]) == 0
    file = folder / "model_file.py"
    assert capsys.readouterr().out.split("\n") == [
        "ok     model_file.Layer.forward#1  match: hidden_states = self.self_attn(...)  ->  " + f"{file}:20",
        "ok     model_file.Layer.forward#2  at: return  ->  " + f"{file}:23, {file}:24",
        "2 edits in 1 modules, 0 errors",
        "",
    ]


def test_check_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "more.yaml").write_text(edits_config("- {match: nothing, before: x = 1}", "model_file.Layer.forward"))
    assert main(["check", "-c", "taps.yaml", "-c", "more.yaml", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert [(edit["edit"], edit["lines"], edit["taps"]) for edit in report["edits"]] == [
        (1, [20], []),
        (2, [23, 24], ["model_file.Layer.forward#2:out"]),
        (3, [], []),
    ]
    assert report["edits"][2]["error"].startswith("more.yaml:4: match: nothing is found nowhere")
    assert report["errors"] == [report["edits"][2]["error"]]


def test_diff_shows_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "-c", "taps.yaml"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == f"--- {folder / 'model_file.py'}"
    assert "+__tensortap_taps__ = __tensortap_dumper__.install_taps(... 1 taps ...)" in lines
    assert "+        out = out" in lines
    assert "+            __tensortap_return__ = self.forward_mlp(hidden_states)" in lines
    assert not [line for line in lines if line.startswith("-") and "return" not in line and line[:3] != "---"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "-c", "none.yaml"], "none.yaml: cannot be read"),
        (["check", "-c", "taps.yaml", "--source", "nowhere"], "--source nowhere: does not exist"),
        (["check", "-c", "taps.yaml", "--source", "taps.yaml"], "neither a folder nor a wheel"),
        (["suggest", "no_such_module.Layer"], "there is no such module"),
        (["list", "model_file.Layr"], "there is no function 'Layr'"),
    ],
)
def test_user_errors_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("patcher: ")
    assert message in said
    assert said.count("\n") == 1


def test_list_names_the_places(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "model_file.Layer.forward_mlp"]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.split("\n")[1:-1]] == [
        "27 entry at: entry hidden_states",
        "27 submodule match: out, _ = self.mlp(...) out",
        "28 collective match: dist.all_reduce(...) out",
        "30 collective match: out = tensor_model_parallel_all_reduce(...) out",
        "30 submodule wrap: self.mlp(...) (nth: 2, 2 places)",
        "31 return at: return",
    ]
    assert main(["list", "model_file.Layer", "--json"]) == 0
    assert [function["target"] for function in json.loads(capsys.readouterr().out)] == [
        f"model_file.Layer.{name}" for name in ("__init__", "forward", "forward_mlp", "load_weights")
    ]


def test_suggest_taps_submodules_and_collectives_and_finds_the_layer(folder: Path) -> None:
    finder = ModuleFinder([folder])
    for target in ("model_file.Layer", "model_file", "model_file.py"):
        text = suggest_config(target, finder)
        assert check_loaded([parse_config(text)], finder).ok
    config = yaml.safe_load(suggest_config("model_file.Layer", finder))
    taps = {
        (patch["target"].rpartition(".")[2], edit["dump"]["name"]): edit
        for patch in config["patches"]
        for edit in patch["edits"]
        if "dump" in edit
    }
    assert sorted(taps) == [
        ("forward", "boundary_finish"),
        ("forward", "boundary_finish_residual"),
        ("forward", "layer_input"),
        ("forward", "norm"),
        ("forward", "norm_residual"),
        ("forward", "self_attn"),
        ("forward_mlp", "all_reduce"),
        ("forward_mlp", "mlp"),
        ("forward_mlp", "tensor_model_parallel_all_reduce"),
    ]
    assert taps["forward", "self_attn"] == {
        "match": "hidden_states = self.self_attn(...)",
        "dump": {"name": "self_attn", "value": "hidden_states", "layer_id": "self.self_attn.layer_id"},
    }
    wrapped = next(edit for patch in config["patches"] for edit in patch["edits"] if "wrap" in edit)
    assert wrapped["wrap"] == "self.norm(...)"
    assert wrapped["nth"] == 2, "the first call is tapped by the name that it is assigned to"
    assert taps["forward_mlp", "all_reduce"]["dump"]["value"] == "out"


def test_every_place_that_is_listed_can_be_tapped(folder: Path) -> None:
    finder = ModuleFinder([folder])
    module = finder.find("model_file")
    assert module is not None
    for place in tappable_places(function_index(module, ("Layer", "forward_mlp"))):
        edit = {place.form: place.pattern, "nth": "all", "dump": {"name": "x", "value": "1"}}
        config = yaml.safe_dump({"patches": [{"target": "model_file.Layer.forward_mlp", "edits": [edit]}]})
        assert check_loaded([parse_config(config)], finder).ok, place


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._ACTIONS, "configs", interrupted)
    assert main(["configs"]) == 130
    assert capsys.readouterr() == ("", "")


def test_try_shows_each_place_and_its_captures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("model_file", "model_file.py", "model_file.Layer"):
        assert main(["try", "-e", "$OUT = self.self_attn($X)", target]) == 0
        assert capsys.readouterr().out.split("\n") == [
            f"{folder / 'model_file.py'}:20  model_file.Layer.forward  hidden_states = self.self_attn(hidden_states)",
            "    $OUT = hidden_states",
            "    $X = hidden_states",
            "places: 1, functions: 1",
            "",
        ]
    assert main(["try", "-e", "self.norm(...)", "model_file", "--json"]) == 0
    assert [match["line"] for match in json.loads(capsys.readouterr().out)["matches"]] == [19, 24]


def test_try_takes_a_file_that_nothing_imports(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "train.py"
    elsewhere.write_text("if True:\n    def f(x):\n        return g(x)\nelse:\n    def f(x):\n        return g(x, 1)\n")
    assert main(["try", "-e", "return g(...)", str(elsewhere)]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.split("\n")[:2]] == [
        f"{elsewhere}:3",
        f"{elsewhere}:6",
    ]


def test_try_names_what_comes_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["try", "-e", "$OUT = self.self_atn(...)", "model_file"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    first, nearest, *_ = said.err.split("\n")
    assert first == "patcher: '$OUT = self.self_atn(...)' matches nothing in model_file"
    assert "model_file.py:20  model_file.Layer.forward  hidden_states = self.self_attn(hidden_states)" in nearest
    assert main(["try", "-e", "x = )", "model_file"]) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_their_flags(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("suggest", "try", "record", "pattern", "sglang/qwen3"))
    assert script.rstrip().split("\n")[-1].split()[-1 if shell != "fish" else 2] == "patcher"


@pytest.mark.parametrize(
    ("target", "edit"),
    [
        ("model_file.Layer.forward", "{match: 'f(\\e[31m)', before: x}"),
        ("model_file.Layer.forward\\e[31m", "{at: entry, before: x}"),
        ("model_file.Layer.forward\\nok  forged", "{at: entry, before: x}"),
        ("model_file.Layer.forward", "{at: entry, dump: {name: x, dims: '\\e[31m'}}"),
    ],
)
def test_nothing_of_a_config_reaches_the_terminal_raw(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str, edit: str
) -> None:
    (folder / "hostile.yaml").write_text(f'patches:\n- target: "{target}"\n  edits: [{edit}]\n'.replace("'", '"'))
    assert main(["check", "-c", "hostile.yaml"]) in (1, 2)
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert "\nok  forged" not in said


def test_nothing_of_a_source_reaches_the_terminal_raw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "hostile.py").write_text("def f(x):\n    return g('\x1b[31m\u202e', x)\n")
    assert main(["try", "-e", "g($WHAT, ...)", "hostile"]) == 0
    assert "    $WHAT = '\\x1b[31m\\u202e'" in capsys.readouterr().out.split("\n")


@pytest.mark.parametrize(("config", "code"), [("taps.yaml", 0), ("wrong.yaml", 1)])
def test_a_reader_who_leaves_changes_no_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, code: int
) -> None:
    (folder / "wrong.yaml").write_text(edits_config("- {match: nothing, before: x = 1}", "model_file.Layer.forward"))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["check", "-c", config]) == code


def test_a_full_device_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["check", "-c", "taps.yaml"]) == 2
    assert capsys.readouterr().err == "patcher: No space left on device\n"
