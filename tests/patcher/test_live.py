"""Patching modules that are imported already, and putting them back exactly."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import linecache
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import patcher
from patcher.errors import PatchError
from patcher.load.hook import activate, deactivate
from patcher.load.process_plan import Activation
from tests.patcher.support import StandInDumper, edits_config

SOURCE = '''
import functools

def deco(f):
    @functools.wraps(f)
    def wrapper(*args, **kwargs):
        return f(*args, **kwargs)
    return wrapper

class Base:
    def forward(self, x):
        return x + 1

class Model(Base):
    @deco
    def forward(self, x, *, k=5):
        """Doc."""
        y = super().forward(x)
        return y + k

    @property
    def size(self):
        return 7

    @functools.cached_property
    def lazy(self):
        return 8

    partial = functools.partialmethod(forward, k=1)

def outer(a):
    b = 3
    def inner(x, c=[1]):
        return x * a + b
    return inner

def plain(x):
    return x

def decorated_without_wraps(f):
    def call(x):
        return f(x)
    return call

@decorated_without_wraps
def hidden(x):
    return x * 2
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    (tmp_path / "live_target.py").write_text(SOURCE)
    (tmp_path / "other_target.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    fake = types.ModuleType("dumper")
    fake.dumper = StandInDumper()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dumper", fake)
    yield importlib.import_module("live_target")
    for name in ("live_target", "other_target"):
        sys.modules.pop(name, None)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandInDumper:
    fake = types.ModuleType("dumper")
    fake.dumper = StandInDumper()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dumper", fake)
    return fake.dumper  # type: ignore[attr-defined, no-any-return]


def config(path: str, edits: str, module: str = "live_target") -> str:
    return edits_config(edits, f"{module}.{path}")


def codes(module: types.ModuleType) -> list[types.CodeType]:
    return [
        module.Model.forward.__code__,
        module.Model.forward.__wrapped__.__code__,
        module.Model.size.fget.__code__,
        module.outer.__code__,
        module.plain.__code__,
    ]


def test_super_defaults_and_decorators_are_kept(module: types.ModuleType) -> None:
    before = codes(module)
    function = module.Model.forward
    with patcher.patched(config("Model.forward", "- {match: y = super().forward(x), after: y = y * 10}")):
        assert module.Model().forward(1) == 25
        assert module.Model().forward(1, k=0) == 20
        assert module.Model().partial(1) == 21
        assert module.Model.forward is function
        assert module.Model.forward.__doc__ == "Doc."
    assert module.Model().forward(1) == 7
    assert all(now is was for now, was in zip(codes(module), before, strict=True))
    assert not [name for name in module.__dict__ if "tensortap" in name]


def test_closures_that_exist_and_closures_made_meanwhile(module: types.ModuleType) -> None:
    existing = module.outer(2)
    code = existing.__code__
    with patcher.patched(config("outer.inner", "- {match: return $X, replace: return -x}")):
        assert existing(3) == -3
        made = module.outer(5)
        assert made(3) == -3
    assert (existing(3), made(3), module.outer(2)(3)) == (9, 18, 9)
    assert existing.__code__ is code
    assert existing.__defaults__ == ([1],)


def test_properties_and_functions_behind_other_decorators(module: types.ModuleType) -> None:
    existing = module.Model()
    text = (
        "patches:\n"
        "  - {target: live_target.Model.size, edits: [{match: return 7, replace: return 70}]}\n"
        "  - {target: live_target.Model.lazy, edits: [{match: return 8, replace: return 80}]}\n"
        "  - {target: live_target.hidden, edits: [{match: return $X, replace: return x * 20}]}\n"
    )
    with patcher.patched(text):
        assert (existing.size, module.Model().lazy, module.hidden(1)) == (70, 80, 20)
    assert (existing.size, module.Model().lazy, module.hidden(1)) == (7, 8, 2)


def test_taps_record_while_applied(module: types.ModuleType) -> None:
    log = sys.modules["dumper"].dumper.log
    applied = patcher.apply(config("plain", "- {at: return, dump: {name: out, k: x + 1}}"))
    assert module.plain(1) == 1
    applied.undo()
    applied.undo()
    assert module.plain(2) == 2
    assert log == [("out", 1, None, {"k": 2})]


def test_two_configs_on_one_function_and_undo_in_any_order(module: types.ModuleType) -> None:
    code = module.plain.__code__
    first = patcher.apply(config("plain", "- {at: entry, before: x = x + 1}"))
    second = patcher.apply(config("plain", "- {at: entry, before: x = x * 10}"))
    assert module.plain(1) == 20
    first.undo()
    assert module.plain(1) == 10
    second.undo()
    assert module.plain(1) == 1
    assert module.plain.__code__ is code


def test_a_module_that_is_imported_while_applied(module: types.ModuleType) -> None:
    finders = list(sys.meta_path)
    applied = patcher.apply(config("plain", "- {at: entry, before: x = x + 1}", "other_target"))
    assert applied.pending == ("other_target",)
    other = importlib.import_module("other_target")
    function = other.plain
    assert other.plain(1) == 2
    applied.undo()
    assert other.plain(1) == 1
    assert other.plain is function
    assert sys.meta_path == finders
    assert not [name for name in other.__dict__ if "tensortap" in name]


def test_nothing_changes_when_an_edit_does_not_land(module: types.ModuleType) -> None:
    before = codes(module)
    text = (
        "patches:\n"
        "  - {target: live_target.plain, edits: [{at: entry, before: x = 1}]}\n"
        "  - {target: live_target.outer, edits: [{match: nothing, before: x = 1}]}\n"
    )
    with pytest.raises(PatchError, match="match: nothing is found nowhere"):
        patcher.apply(text)
    assert codes(module) == before
    with pytest.raises(PatchError, match="there is no function 'plan'"):
        patcher.apply(config("plan", "- {at: entry, before: x = 1}"))


def test_code_that_needs_another_closure_is_refused(module: types.ModuleType) -> None:
    existing = module.outer(2)
    text = config("Model.size", "- {at: entry, before: super().__init__()}")
    with pytest.raises(PatchError, match=r"size: the inserted code uses super\(\), which the live function"):
        patcher.apply(text)
    assert existing(1) == 5
    assert module.Model().size == 7


def test_a_path_is_a_config_too(module: types.ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "taps.yaml"
    path.write_text(config("plain", "- {at: entry, before: x = x + 1}"))
    with patcher.patched(path), patcher.patched(str(path)):
        assert module.plain(1) == 3
    assert functools.reduce(lambda value, _: module.plain(value), range(3), 1) == 1


def test_the_hook_says_which_modules_came_before_it(
    module: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    activation = activate(
        Activation({"live_target": "0" * 20, "not_imported_yet": "0" * 20}, "[]", str(tmp_path / "plan"))
    )
    assert activation is not None
    deactivate(activation)
    said = capsys.readouterr().err
    assert said == (
        "tensortap: live_target was imported before the patcher was active, so it runs unpatched; import it later, "
        "or use patcher.apply(CONFIG)\n"
    )
    assert (tmp_path / "plan.errors").read_text().endswith(said.removeprefix("tensortap: "))
    assert activate(Activation({}, "[]")) is None


def load_by_path(file: Path, name: str) -> types.ModuleType:
    """As loaders of model code do that is copied from beside its weights."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class AnswersEverything(types.ModuleType):
    """Has something under every name, as ``torch.classes`` has."""

    __file__ = "_nowhere.py"

    def __getattr__(self, name: str) -> object:
        return object()


def test_modules_that_come_later_are_patched_where_a_glob_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORTAP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "modeling.py"
    file.write_text("def f(x):\n    return x\n")
    names = ["dynamic.h1.modeling", "dynamic.h2.modeling", "dynamic.h3.modeling"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    early = load_by_path(file, names[0])
    monkeypatch.setitem(sys.modules, "dynamic.answers.modeling", AnswersEverything("dynamic.answers.modeling"))
    config = """
        patches:
        - target: dynamic.*.modeling.f
          optional: true
          edits: [{at: entry, before: x = x + 1}]
    """
    with patcher.patched(config) as applied:
        late = load_by_path(file, names[1])
        assert (early.f(1), late.f(1)) == (2, 2)
        assert applied.modules == (names[0],)
    assert (early.f(1), late.f(1)) == (1, 1)
    assert load_by_path(file, names[2]).f(1) == 1


def cell(module: types.ModuleType, number: int, source: str) -> None:
    """Run a cell of a notebook: IPython gives it a file name that only ``linecache`` knows."""
    name = f"<cell-{number}-{module.__name__}>"
    text = textwrap.dedent(source).lstrip("\n")
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), module.__dict__)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch, stand_in: StandInDumper) -> types.ModuleType:
    module = types.ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    cell(module, 1, "import math\n\ndef scale(x):\n    y = x + 1\n    return y\n")
    cell(module, 2, "\nclass Net:\n    def forward(self, x):\n        z = scale(x)\n        return z * math.e\n")
    cell(module, 3, "# again\n\n\ndef scale(x):\n    y = x + 2\n    return y\n")
    return module


def test_functions_of_notebook_cells(notebook: types.ModuleType, stand_in: StandInDumper) -> None:
    config = """
    patches:
      - target: a_notebook.scale
        edits:
          - {match: y = x + 2, dump: {name: scaled, value: y}}
      - target: a_notebook.Net.forward
        edits:
          - {match: z = scale(...), after: z = z * math.floor(1.5)}
          - {at: return, dump: {name: out}}
    """
    scale, net = notebook.scale, notebook.Net()
    before = scale.__code__, net.forward(1)
    with patcher.patched(config):
        assert net.forward(1) == before[1]
        assert [entry[:2] for entry in stand_in.log] == [("scaled", 3), ("out", before[1])]
        assert scale.__code__.co_filename == "<cell-3-a_notebook>"
        assert scale.__code__.co_firstlineno == 4
    assert (scale.__code__, net.forward(1)) == before
    assert len(stand_in.log) == 2


def test_an_edit_of_a_cell_that_does_not_land_changes_nothing(notebook: types.ModuleType) -> None:
    code = notebook.scale.__code__
    with pytest.raises(PatchError, match="x \\+ 1"):
        patcher.apply(edits_config("- {match: y = x + 1, before: pass}", "a_notebook.scale"))
    with pytest.raises(PatchError, match="nothing"):
        patcher.apply(edits_config("- {match: nothing(), before: pass}", "a_notebook.Net.forward"))
    assert notebook.scale.__code__ is code


def test_a_module_that_is_only_among_the_loaded_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.py").write_text("class Net:\n    def forward(self, x):\n        y = x + 1\n        return y\n")
    name = "nowhere_to_be_found.deeper.model"
    spec = importlib.util.spec_from_file_location(name, tmp_path / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    net = module.Net()
    with patcher.patched(edits_config("- {match: y = x + 1, replacement: y = x + 2}", f"{name}.Net.forward")):
        assert net.forward(1) == 3
    assert net.forward(1) == 2


def test_code_whose_text_nobody_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_by_exec")
    exec("def f(x):\n    return x\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_by_exec", module)
    with pytest.raises(PatchError, match="made_by_exec"):
        patcher.apply(edits_config("- {match: return x, before: pass}", "made_by_exec.f"))


def test_edits_of_decorators_leave_live_functions_decorated(module: types.ModuleType) -> None:
    model = module.Model()
    edits = """
        - {match: "@deco", replacement: ""}
        - {match: "def forward(self, x, *, k=5):", replacement: "def forward(self, x: int, *, k=5):"}
        - {match: return y + k, prepend: y = y + 100}
        """
    before = model.forward(1)
    with patcher.patched(config("Model.forward", edits)):
        assert model.forward(1) == before + 100
        assert model.forward.__wrapped__.__name__ == "forward"
    assert model.forward(1) == before
