"""Targets in modules that somebody else loads: by path, by a hook that rewrites code as well, as a script."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reach.launched import launch, patcher, write

MODEL = """
    class Model:
        def forward(self, x: int) -> int:
            h = x * 2
            return h
    """
DUMP_H = "edits: [{assign: h, dump: {name: h}}]"


def config(*targets: str, more: str = "") -> str:
    return "patches:\n" + "".join(f"  - target: '{target}'\n    {more}{DUMP_H}\n" for target in targets)


BY_PATH = """
    import importlib.util, sys
    from pathlib import Path

    def load(name, file):
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    """


def test_a_module_that_is_loaded_from_its_file(tmp_path: Path) -> None:
    write(tmp_path, parts__modeling=MODEL, by_path=BY_PATH, config=config("parts.modeling.Model.forward"))
    write(
        tmp_path,
        serve="from by_path import load\nprint(load('parts.modeling', 'parts/modeling.py').Model().forward(3))",
    )
    done = launch(tmp_path, "serve.py")
    assert (done.out, done.recorded()) == ("6\n", {"h": 1}), done.err


def test_a_module_that_is_loaded_from_its_file_under_another_name(tmp_path: Path) -> None:
    write(tmp_path, parts__modeling=MODEL, by_path=BY_PATH, config=config("parts.modeling.Model.forward"))
    write(tmp_path, serve="from by_path import load\nprint(load('plugin_7', 'parts/modeling.py').Model().forward(3))")
    done = launch(tmp_path, "serve.py")
    assert (done.out, done.recorded()) == ("6\n", {"h": 1}), done.err


LATE = """
    import sys
    from pathlib import Path
    from by_path import load

    folder = Path("made/models_cache/h123")
    folder.mkdir(parents=True)
    (folder / "modeling_toy.py").write_text(Path("modeling_toy.txt").read_text())
    (folder / "other.py").write_text(Path("modeling_toy.txt").read_text())
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    sys.path.insert(0, "made")
    if "import" in sys.argv:
        from models_cache.h123 import modeling_toy, other
    else:
        modeling_toy = load("models_cache.h123.modeling_toy", folder / "modeling_toy.py")
        other = load("models_cache.h123.other", folder / "other.py")
    print(modeling_toy.Model().forward(3), other.Model().forward(3))
    """


@pytest.mark.parametrize("way", ["path", "import"])
@pytest.mark.parametrize(
    "target", ["models_cache.*.modeling_toy.Model.forward", "models_cache.h123.modeling_toy.Model.forward"]
)
def test_a_target_that_comes_into_being_while_the_command_runs(tmp_path: Path, way: str, target: str) -> None:
    write(tmp_path, by_path=BY_PATH, serve=LATE, config=config(target, more="optional: true\n    "))
    (tmp_path / "modeling_toy.txt").write_text("\n".join(line[4:] for line in MODEL.splitlines()))
    done = launch(tmp_path, "serve.py", way)
    assert (done.out, done.recorded()) == ("6 6\n", {"h": 1}), done.err


def test_a_late_target_in_which_an_edit_does_not_land_runs_unpatched_and_says_so(tmp_path: Path) -> None:
    write(tmp_path, by_path=BY_PATH, serve=LATE)
    text = config("models_cache.*.modeling_toy.Model.forward", more="optional: true\n    ")
    (tmp_path / "config.yaml").write_text(text.replace("assign: h", "assign: gone"))
    (tmp_path / "modeling_toy.txt").write_text("\n".join(line[4:] for line in MODEL.splitlines()))
    done = launch(tmp_path, "serve.py", "path")
    assert (done.code, done.out) == (0, "6 6\n"), done.err
    assert "models_cache.h123.modeling_toy" in done.err
    assert "assign: gone" in done.err


# Hooks that change modules as they are imported. Each doubles every integer constant of what it loads, in its own way.

TRANSFORM = """
    import ast

    class Double(ast.NodeTransformer):
        def visit_Constant(self, node):
            return ast.copy_location(ast.Constant(node.value * 2), node) if type(node.value) is int else node
    """
LOADER_FROM_TREE = """
    import ast, sys
    from importlib.machinery import PathFinder, SourceFileLoader
    from importlib.util import decode_source
    from transform import Double

    class Loader(SourceFileLoader):
        def source_to_code(self, data, path, *, _optimize=-1):
            tree = ast.fix_missing_locations(Double().visit(ast.parse(decode_source(data), path)))
            return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name != "model":
                return None
            spec = PathFinder.find_spec(name, path, target)
            spec.loader = Loader(spec.loader.name, spec.loader.path)
            return spec

    sys.meta_path.insert(0, Finder())
    """
PATH_HOOK = """
    import ast, sys
    from ast import PyCF_ONLY_AST
    from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
    from importlib.util import decode_source
    from transform import Double

    class Loader(SourceFileLoader):
        wanted = False
        def get_code(self, fullname):
            self.wanted = fullname == "model"
            return super().get_code(fullname)
        def source_to_code(self, data, path, *, _optimize=-1):
            if not self.wanted:
                return super().source_to_code(data, path, _optimize=_optimize)
            tree = compile(decode_source(data), path, "exec", PyCF_ONLY_AST, dont_inherit=True, optimize=_optimize)
            tree = ast.fix_missing_locations(Double().visit(tree))
            return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    details = (ExtensionFileLoader, EXTENSION_SUFFIXES), (Loader, [".py"])
    sys.path_hooks.insert(0, FileFinder.path_hook(*details))
    sys.path_importer_cache.clear()
    """
OWN_EXEC = """
    import ast, importlib.util, sys
    from importlib.machinery import PathFinder
    from pathlib import Path
    from transform import Double

    class Hook:
        def find_spec(self, name, path=None, target=None):
            spec = PathFinder.find_spec(name, path)
            if name != "model":
                return None
            return importlib.util.spec_from_file_location(name, spec.origin, loader=self)
        def create_module(self, spec):
            return None
        def exec_module(self, module):
            file = module.__spec__.origin
            tree = ast.fix_missing_locations(Double().visit(ast.parse(Path(file).read_bytes(), filename=file)))
            exec(compile(tree, file, "exec", dont_inherit=True), module.__dict__)

    sys.meta_path.insert(0, Hook())
    import colorsys  # any import, as there are many before a hook is used
    """
COMPLETED = """
    import sys
    from importlib.machinery import PathFinder

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name != "model":
                return None
            spec = PathFinder.find_spec(name, path, target)
            execute = spec.loader.exec_module
            def exec_module(module):
                execute(module)
                module.Model.doubled = lambda self, x: 2 * self.forward(x)
            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())
    """


@pytest.mark.parametrize(
    "hook", [LOADER_FROM_TREE, PATH_HOOK, OWN_EXEC], ids=["source_to_code", "path hook and get_code", "exec_module"]
)
def test_a_hook_that_rewrites_the_module_too(tmp_path: Path, hook: str) -> None:
    """What the hook makes of the module and what the config puts in both hold, in a second run as well."""
    write(tmp_path, transform=TRANSFORM, hook=hook, model=MODEL, config=config("model.Model.forward"))
    write(tmp_path, serve="import hook, model\nprint(model.Model().forward(3))")
    for run in ("first", "second"):
        done = launch(tmp_path, "serve.py", run=run)
        assert (done.out, done.recorded()) == ("12\n", {"h": 1}), done.err
    # Nothing of ours is left in what the hook keeps for itself.
    write(tmp_path, plain="import hook, model\nprint(model.Model().forward(3), '__tensortap_taps__' in vars(model))")
    assert patcher(tmp_path, "run", "-c", "none.yaml", "--", "true").code == 2
    import subprocess
    import sys

    out = subprocess.run([sys.executable, "plain.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out == "12 False\n"


def test_a_hook_that_completes_the_module_after_it_ran(tmp_path: Path) -> None:
    write(tmp_path, hook=COMPLETED, model=MODEL, config=config("model.Model.forward"))
    write(tmp_path, serve="import hook, model\nprint(model.Model().doubled(3))")
    done = launch(tmp_path, "serve.py")
    assert (done.out, done.recorded()) == ("12\n", {"h": 1}), done.err


def test_modules_that_pytest_rewrites(tmp_path: Path) -> None:
    write(
        tmp_path,
        conftest="""
            import pytest
            pytest.register_assert_rewrite('helper')

            def made(x):
                h = x + 1
                return h
            """,
        helper="def doubled(x):\n    h = x * 2\n    return h\n\ndef same(a, b):\n    assert a == b\n",
        test_it="""
            from conftest import made
            from helper import doubled, same

            def halved(x):
                h = x // 2
                return h

            def test_holds():
                assert doubled(made(1)) == 4 and halved(2) == 1

            def test_fails():
                same(doubled(2), 5)
            """,
        config=config("helper.doubled", "test_it.halved", "conftest.made").replace("name: h}", "name: h}", 1),
    )
    for run in ("first", "second"):
        done = launch(tmp_path, "-m", "pytest", "-q", run=run, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        assert done.recorded() == {"h": 4}, done.out + done.err
        assert "assert 4 == 5" in done.out
        assert "1 failed, 1 passed" in done.out


SCRIPT = """
    import multiprocessing, os, sys

    class Model:
        def forward(self, x):
            h = x * 2
            return h

    def work(queue, x):
        queue.put(Model().forward(x))

    if __name__ == "__main__":
        if "RANK" in os.environ:
            import torch.distributed
            torch.distributed.init_process_group("gloo")
        print(Model().forward(3), sys.argv[1:], __spec__, __package__, __file__.endswith("train.py"))
        print(sys.path[0] == sys.argv[0].rpartition("train.py")[0].rstrip("/") or sys.path[0])
        if "spawn" in sys.argv:
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=work, args=(queue, 4))
            process.start()
            print(queue.get(timeout=60))
            process.join()
    """


def test_a_script_is_a_target_as_a_module_is(tmp_path: Path) -> None:
    write(tmp_path, train=SCRIPT, config=config("train.Model.forward"))
    done = launch(tmp_path, str(tmp_path / "train.py"), "--lr", "1", "spawn")
    assert done.out == "6 ['--lr', '1', 'spawn'] None None True\nTrue\n8\n", done.err
    assert done.recorded() == {"h": 1}
    assert "another process" in done.err or done.code == 0


@pytest.mark.parametrize(
    "way",
    [
        "import runpy; runpy.run_path('train.py', run_name='__main__')",
        "import runpy; runpy.run_module('train', run_name='__main__')",
    ],
)
def test_a_script_that_runpy_runs(tmp_path: Path, way: str) -> None:
    write(tmp_path, train=SCRIPT, config=config("train.Model.forward"), start=way)
    done = launch(tmp_path, "start.py")
    assert done.out.startswith("6 ["), done.err
    assert done.recorded() == {"h": 1}


@pytest.mark.slow
def test_a_script_under_torchrun(tmp_path: Path) -> None:
    write(tmp_path, train=SCRIPT, config=config("train.Model.forward"))
    done = launch(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py")
    assert done.code == 0, done.err
    assert done.recorded() == {"h": 2}, done.err
