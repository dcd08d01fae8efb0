"""From dotted names to functions, without importing; and modules that cannot be patched."""

from __future__ import annotations

import py_compile
import sys
import zipfile
from pathlib import Path

import pytest

from patcher.check import check_loaded
from patcher.config.load import parse_config
from patcher.errors import TargetError
from patcher.source.modules import ModuleFinder
from patcher.source.targets import resolve_target
from tests.patcher.support import block, check, edit, edits_config, rewrite, run_module

PACKAGE = {
    "pkg/__init__.py": "from pkg.models.llama import LlamaLayer as Exported\nfrom .helpers import *\n",
    "pkg/helpers.py": "def helper(x):\n    return x\n",
    "pkg/models/base.py": block("""
        import abc
        class Root:
            def size(self):
                return 1
        class Left(Root):
            pass
        class Right(Root):
            def size(self):
                return 2
        class BaseLayer(abc.ABC):
            def forward(self, x):
                return x
    """),
    "pkg/models/llama.py": block("""
        from typing import Generic
        from . import base
        from .base import BaseLayer, Left, Right
        class LlamaLayer(BaseLayer, Generic[int]):
            def __init__(self):
                self.forward(1)
        class LlamaDecoderLayer(LlamaLayer):
            class Inner:
                @staticmethod
                def run(x):
                    return x
        class Diamond(Left, Right):
            pass
        class Qwen(base.BaseLayer):
            def forward(self, x):
                def step(y):
                    return y
                class Local:
                    def go(self):
                        return 1
                return step(x)
            call = forward
        def run(x):
            return x
        alias = run
        if True:
            def conditional(x):
                return x
    """),
    "pkg/models/mixtral.py": "class MixtralDecoderLayer:\n    def forward(self, x):\n        return x\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "defined"),
    [
        ("pkg.models.llama.Qwen.forward", ["pkg.models.llama.Qwen.forward"]),
        ("pkg.models.llama.Qwen.forward.step", ["pkg.models.llama.Qwen.forward.step"]),
        ("pkg.models.llama.Qwen.forward.<locals>.Local.go", ["pkg.models.llama.Qwen.forward.Local.go"]),
        ("pkg.models.llama.Qwen.call", ["pkg.models.llama.Qwen.forward"]),
        ("pkg.models.llama.LlamaDecoderLayer.Inner.run", ["pkg.models.llama.LlamaDecoderLayer.Inner.run"]),
        ("pkg.models.llama.LlamaDecoderLayer.forward", ["pkg.models.base.BaseLayer.forward"]),
        ("pkg.models.llama.Diamond.size", ["pkg.models.base.Right.size"]),
        ("pkg.models.llama.alias", ["pkg.models.llama.run"]),
        ("pkg.models.llama.conditional", ["pkg.models.llama.conditional"]),
        ("pkg.models.llama.base.Root.size", ["pkg.models.base.Root.size"]),
        ("pkg.Exported.forward", ["pkg.models.base.BaseLayer.forward"]),
        ("pkg.helper", ["pkg.helpers.helper"]),
        (
            "pkg.models.*.*DecoderLayer.forward",
            ["pkg.models.base.BaseLayer.forward", "pkg.models.mixtral.MixtralDecoderLayer.forward"],
        ),
        ("pkg.models.llama.*.call", ["pkg.models.llama.Qwen.forward"]),
        ("pkg.models.base.[LR]*t.size", ["pkg.models.base.Right.size", "pkg.models.base.Root.size"]),
        ("pkg.models.llama.run*", ["pkg.models.llama.run"]),
    ],
)
def test_what_a_target_means(tree: Path, target: str, defined: list[str]) -> None:
    found = resolve_target(target, ModuleFinder([tree]))
    assert sorted({resolved.name for resolved in found}) == defined
    assert not any(name == "pkg" or name.startswith("pkg.") for name in sys.modules)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("pkg.models.llama.Qwen.forwrd", "there is no function 'Qwen.forwrd' in .*llama.py; nearest: Qwen.forward"),
        ("pkg.models.lama.run", "there is no module 'lama' in the package pkg.models; nearest: llama"),
        ("pkg.models.llama.Qwen", "is a class; name one of its methods: Qwen.forward"),
        ("pkg.models.llama", "is a module; name a function or method in it, such as pkg.models.llama.LlamaLayer"),
        ("pgk.models", "there is no module 'pgk'; nearest: pkg"),
        ("pkg.models.*.*EncoderLayer.forward", "nothing matches this glob"),
        ("*.run", "begins with a glob"),
        ("pkg..run", "not a dotted name"),
    ],
)
def test_a_target_that_does_not_exist(tree: Path, target: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        resolve_target(target, ModuleFinder([tree]))


def test_an_inherited_method_is_said_to_be_patched_where_it_is_defined(tree: Path) -> None:
    config = edits_config("- {at: entry, before: y = x}", "pkg.models.llama.LlamaDecoderLayer.forward")
    checked = check_loaded([parse_config(config, "taps.yaml")], ModuleFinder([tree]))
    assert [note.message for note in checked.plan.notes] == [
        "taps.yaml:2: pkg.models.llama.LlamaDecoderLayer.forward is defined as pkg.models.base.BaseLayer.forward, "
        "patched there"
    ]
    (module,) = checked.modules
    assert module.landings[0].target == "pkg.models.base.BaseLayer.forward"


def test_targets_in_a_wheel(tree: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "pkg-2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in PACKAGE:
            archive.write(tree / name, name)
        archive.writestr("pkg-2.0.dist-info/METADATA", "Name: pkg\nVersion: 2.0\n")
    config = 'requires: {pkg: "==2.0"}\n' + edits_config("- {at: entry, before: y = x}", "pkg.models.*.*Layer.forward")
    checked = check_loaded([parse_config(config, "taps.yaml")], ModuleFinder([wheel]))
    assert checked.ok
    assert {module.patch.module for module in checked.modules} == {"pkg.models.base", "pkg.models.mixtral"}
    assert all(module.file.startswith(str(wheel)) for module in checked.modules)


def test_the_first_target_that_exists_is_used(tmp_path: Path) -> None:
    source = "def new(x):\n    return x\n"
    config = "patches: [{target: [mod.old, mod.new], edits: [{at: entry, before: y = x}]}]"
    assert rewrite(tmp_path, source, config) == "def new(x):\n    y = x\n    return x\n"
    missing = "patches: [{target: mod.old, optional: true, edits: [{at: entry, before: y = x}]}]"
    assert check(tmp_path, source, missing).ok


def test_all_kinds_of_functions(tmp_path: Path) -> None:
    source = """
        import asyncio, functools
        def deco(f):
            @functools.wraps(f)
            def inner(*a):
                return f(*a)
            return inner
        class A:
            @staticmethod
            def s(x): return x
            @classmethod
            def c(cls, x): return x
            @property
            def p(self): return 1
            @p.setter
            def p(self, value): self.q = value
            @deco
            def d(self, x): return x
            async def a(self, x): return x
            def g(self, x):
                yield x
            class B:
                def m(self, x): return x
            def __private(self, x): return x
        def outer(x):
            def nested(y): return y
            return nested(x)
        async def agen(x):
            yield x
            return
    """
    paths = ["A.s", "A.c", "A.p", "A.p.setter", "A.d", "A.a", "A.g", "A.B.m", "A.__private", "outer.nested", "agen"]
    patches = "".join(
        f"  - {{target: mod.{path}, edits: [{{at: return, dump: {{name: {path}}}}}]}}\n" for path in paths
    )
    module, dumper = run_module(tmp_path, source, "patches:\n" + patches)
    model = module.A()
    assert (model.s(1), model.c(2), model.p, model.d(3), list(model.g(4)), module.A.B().m(5)) == (1, 2, 1, 3, [4], 5)
    model.p = 6
    assert model.q == 6
    assert model._A__private(7) == 7
    assert module.outer(8) == 8

    async def main() -> list[int]:
        return [await model.a(9), *[x async for x in module.agen(10)]]

    import asyncio

    assert asyncio.run(main()) == [9, 10]
    assert [entry[:2] for entry in dumper.log] == [
        ("A.s", 1), ("A.c", 2), ("A.p", 1), ("A.d", 3), ("A.g", None), ("A.B.m", 5), ("A.p.setter", None),
        ("A.__private", 7), ("outer.nested", 8), ("A.a", 9), ("agen", None),
    ]  # fmt: skip


def test_two_targets_one_within_the_other(tmp_path: Path) -> None:
    source = "def outer(x):\n    def inner(y):\n        return y\n    return inner(x)\n"
    config = """
        patches:
          - {target: mod.outer.inner, edits: [{match: return y, replace: return y + 1}]}
          - {target: mod.outer, edits: [{at: entry, before: x = x * 2}]}
    """
    module, _ = run_module(tmp_path, source, config)
    assert module.outer(5) == 11


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("# coding: latin-1\ndef f(x):\n    y = 'é'\n    return y\n".encode("latin-1"), "é"),
        ("\ufeffdef f(x):\n    y = 'ü'\n    return y\n".encode(), "ü"),
        (b"def f(x):\r\n    y = '''a\r\nb'''\r\n    return y\r\n", "a\nb"),
        ("def f(x):\n    y = 'a\u2028b\x0cc'\n    return y\n".encode(), "a\u2028b\x0cc"),
        (b"def f(x):\n\tif x:\n\t\ty = 1\n\treturn y\n", 1),
        (b"def f(x):\n    y = 1; return y", 1),
    ],
)
def test_encodings_line_ends_and_tabs(tmp_path: Path, data: bytes, expected: object) -> None:
    checked = check(tmp_path, data, edits_config("- {assign: y, after: z = y}\n- {at: return, dump: {name: r}}"))
    assert checked.ok, checked.errors
    from patcher.load.compile import compile_module

    (module,) = checked.modules
    assert module.rewritten is not None
    namespace: dict[str, object] = {}
    code = compile_module(module.rewritten, "f.py")
    function = next(c for c in code.co_consts if hasattr(c, "co_name") and c.co_name == "f")
    assert expected in function.co_consts or expected == 1
    del namespace


def test_a_source_that_cannot_be_decoded_or_parsed(tmp_path: Path) -> None:
    config = edits_config("- {at: entry, before: y = x}")
    for data, message in [
        (b"def f(x): return '\xff'\n", "cannot be decoded"),
        (b"def f(x: return 1\n", "does not parse"),
    ]:
        assert message in "\n".join(check(tmp_path, data, config).errors)


def test_modules_without_source_are_refused(tmp_path: Path) -> None:
    (tmp_path / "only.py").write_text("def f(x):\n    return x\n")
    py_compile.compile(str(tmp_path / "only.py"), cfile=str(tmp_path / "only.pyc"))
    (tmp_path / "only.py").unlink()
    (tmp_path / "space").mkdir()
    finder = ModuleFinder([tmp_path])
    with pytest.raises(TargetError, match=r"only comes only as bytecode .*its source is needed"):
        resolve_target("only.f", finder)
    with pytest.raises(TargetError, match="there is no module 'f' in the package space"):
        resolve_target("space.f", finder)
    with pytest.raises(TargetError, match="space is a namespace package"):
        resolve_target("space", finder)
    with pytest.raises(TargetError, match=r"is a C extension|has no Python source"):
        resolve_target("_ctypes.dlopen", finder)
    with pytest.raises(TargetError, match="time has no Python source"):
        resolve_target("time.sleep", finder)


def test_a_definition_that_is_decorated_over_several_lines(tmp_path: Path) -> None:
    source = """
        @deco(
            1,
        )
        def f(
            x,
        ):
            return x
    """
    text = edit(tmp_path, source, "- {at: entry, before: y = x}")
    assert text.endswith("):\n    y = x\n    return x\n")


def test_definitions_in_both_branches_count_as_one_text(tmp_path: Path) -> None:
    source = "if X:\n    def f(x):\n        return a(x)\nelse:\n    def f(x):\n        return b(x)\n"
    text = edit(tmp_path, source, "- {match: a(x), before: note()}\n- {at: entry, before: start()}")
    assert text == (
        "if X:\n    def f(x):\n        start()\n        note()\n        return a(x)\n"
        "else:\n    def f(x):\n        start()\n        return b(x)\n"
    )
