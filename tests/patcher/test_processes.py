"""Patched code in launched processes and in the processes that they start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from patcher.cli import main
from testbed.forked import light_host

ROOT = Path(__file__).parents[2]
MODULE = '''
"""Doc."""
from __future__ import annotations
SEEN = []
class Model:
    def forward(self, x):
        y = self.layer(x,
                       1)
        if y < 0:
            raise ValueError(y)
        return y
    def layer(self, x, k):
        return x + k
'''
CONFIG = """
patches:
  - target: target_mod.Model.forward
    edits:
      - match: y = self.layer(...)
        after: |
          y = y * 100
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target_mod.py").write_text(MODULE)
    (tmp_path / "edits.yaml").write_text(CONFIG)
    return tmp_path


def run(
    folder: Path, command: list[str], *, env: dict[str, str] | None = None, config: str = "edits.yaml"
) -> subprocess.CompletedProcess[str]:
    """``patcher run`` in a folder, with a cache of its own."""
    environment = {**os.environ, "TENSORTAP_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), **(env or {})}
    arguments = ["run", "-c", config, "--", *command]
    return light_host().run("patcher", *arguments, module=True, folder=folder, environment=environment)


def script(folder: Path, text: str, name: str = "script.py") -> list[str]:
    (folder / name).write_text(textwrap.dedent(text))
    return [sys.executable, name]


def test_multiprocessing_subprocess_and_a_user_sitecustomize(folder: Path) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text("import builtins\nbuiltins.users_own = 'kept'\n")
    command = script(
        folder,
        """
        import multiprocessing, subprocess, sys, target_mod

        def work(queue):
            queue.put((target_mod.Model().forward(2), users_own))

        if __name__ == "__main__":
            for method in ("spawn", "fork", "forkserver"):
                context = multiprocessing.get_context(method)
                queue = context.Queue()
                process = context.Process(target=work, args=(queue,))
                process.start()
                print(method, *queue.get(timeout=60))
                process.join()
            code = "import target_mod; print('subprocess', target_mod.Model().forward(2), users_own)"
            subprocess.run([sys.executable, "-c", code], check=True)
            print("here", target_mod.Model().forward(2), users_own)
        """,
    )
    done = run(folder, command, env={"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder / "site")])})
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == [
        "",
        "fork 300 kept",
        "forkserver 300 kept",
        "here 300 kept",
        "spawn 300 kept",
        "subprocess 300 kept",
    ]


def test_a_module_that_runs_as_main(folder: Path) -> None:
    package = folder / "program"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "def main():\n    x = 1\n    print(__name__, x)\n\nif __name__ == '__main__':\n    main()\n"
    )
    (folder / "main.yaml").write_text(
        "patches:\n  - target: program.__main__.main\n    edits:\n      - {match: x = 1, replace: x = 2}\n"
    )
    done = run(folder, [sys.executable, "-m", "program"], config="main.yaml")
    assert (done.returncode, done.stdout) == (0, "__main__ 2\n"), done.stderr


def test_tracebacks_source_and_profilers_show_the_original(folder: Path) -> None:
    command = script(
        folder,
        """
        import cProfile, inspect, sys, traceback, target_mod
        model = target_mod.Model()
        assert inspect.getsource(target_mod.Model.forward) in open("target_mod.py").read()
        assert inspect.getsourcelines(target_mod.Model.layer)[1] == 12
        try:
            model.forward(-5)
        except ValueError:
            frames = traceback.extract_tb(sys.exc_info()[2])
            print(frames[-1].filename == target_mod.__file__, frames[-1].lineno, frames[-1].line)
        lines = []
        def trace(frame, event, argument):
            if frame.f_code.co_filename == target_mod.__file__:
                lines.append(frame.f_lineno)
            return trace
        sys.settrace(trace)
        model.forward(1)
        sys.settrace(None)
        print(sorted(set(lines)), target_mod.__doc__, target_mod.Model.forward.__annotations__)
        """,
    )
    done = run(folder, command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True 10 raise ValueError(y)\n[6, 7, 8, 9, 11, 12, 13] Doc. {}\n"


def test_from_the_cache_neither_libcst_nor_pydantic_is_imported(folder: Path) -> None:
    command = script(
        folder,
        """
        import sys, target_mod
        print(target_mod.Model().forward(2), {"libcst", "pydantic", "yaml", "json"} & set(sys.modules))
        """,
    )
    for _ in range(2):
        done = run(folder, command)
        assert (done.returncode, done.stdout) == (0, "300 set()\n"), done.stderr


@pytest.mark.slow
def test_a_changed_source_is_rewritten_and_a_damaged_cache_is_not_used(folder: Path) -> None:
    command = script(folder, "import target_mod; print(target_mod.Model().forward(2))")
    assert run(folder, command).stdout == "300\n"
    (cached,) = (folder / "cache").glob("*.bin")
    cached.write_bytes(cached.read_bytes()[:-10])
    assert run(folder, command).stdout == "300\n"
    source = folder / "target_mod.py"
    source.write_text(source.read_text().replace("x + k", "x + k + 1"))
    assert run(folder, command).stdout == "400\n"
    # As long as before, and with the time of modification that packages give to all their files.
    before = source.stat()
    source.write_text(source.read_text().replace("x + k + 1", "x + k + 2"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(folder, command).stdout == "500\n"


def test_bytecode_that_nobody_uses_is_removed(folder: Path) -> None:
    cached = folder / "cache"
    cached.mkdir()
    for name, days in (("old.bin", 31), ("new.bin", 29), ("old.plan", 31)):
        (cached / name).touch()
        os.utime(cached / name, (time.time() - days * 86400,) * 2)
    run(folder, script(folder, "import target_mod"))
    assert {path.name for path in cached.iterdir()} >= {"new.bin", "old.plan"}
    assert not (cached / "old.bin").exists()


@pytest.mark.slow
def test_processes_that_find_no_cache_rewrite_for_themselves_at_once(folder: Path) -> None:
    command = script(
        folder,
        """
        import os, subprocess, sys
        for name in os.listdir(os.environ["TENSORTAP_CACHE"]):
            if name.endswith(".bin"):
                os.unlink(os.path.join(os.environ["TENSORTAP_CACHE"], name))
        code = "import target_mod; print(target_mod.Model().forward(2))"
        ranks = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
        print([rank.communicate()[0] for rank in ranks])
        print(sorted(name.rpartition(".")[2] for name in os.listdir(os.environ["TENSORTAP_CACHE"])))
        """,
    )
    done = run(folder, command)
    assert done.stdout == f"{[b'300' + os.linesep.encode()] * 4}\n['bin', 'plans']\n", done.stderr


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_made_does_no_harm(folder: Path) -> None:
    (folder / "taken").write_text("a file where the cache folder would be")
    command = script(folder, "import target_mod; print(target_mod.Model().forward(2))")
    done = run(folder, command, env={"TENSORTAP_CACHE": str(folder / "taken" / "cache")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "300\n", "")


def test_a_swallowed_import_error_is_still_seen(folder: Path) -> None:
    command = script(
        folder,
        """
        import os, pathlib
        path = pathlib.Path("target_mod.py")
        path.write_text(path.read_text().replace("self.layer(x", "self.other(x"))
        try:
            import target_mod
        except ImportError:
            pass
        print(pathlib.Path(os.environ["TENSORTAP_PATCH_PLAN"] + ".errors").read_text())
        """,
    )
    done = run(folder, command)
    assert "tensortap: target_mod cannot be patched: " in done.stderr
    assert "edits.yaml:5: match: y = self.layer(...) is found nowhere; nearest:" in done.stderr
    assert "target_mod cannot be patched" in done.stdout


@pytest.mark.slow
def test_a_module_that_another_hook_loads_is_reported(folder: Path) -> None:
    command = script(
        folder,
        """
        import importlib.machinery, sys

        class Hook:
            def find_spec(self, name, path=None, target=None):
                return importlib.machinery.ModuleSpec(name, self) if name == "target_mod" else None
            def create_module(self, spec):
                return None
            def exec_module(self, module):
                exec(open("target_mod.py").read(), module.__dict__)

        sys.meta_path.insert(0, Hook())
        import target_mod
        print(target_mod.Model().forward(2))
        """,
    )
    done = run(folder, command)
    assert done.stdout == "3\n"
    assert "tensortap: target_mod ran unpatched" in done.stderr


def test_run_refuses_when_an_edit_does_not_land(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "edits.yaml").write_text(CONFIG.replace("self.layer(...)", "self.lair(...)"))
    assert main(["run", "-c", "edits.yaml", "--", sys.executable, "-c", "print('started')"]) == 1
    said = capfd.readouterr()
    assert "started" not in said.out
    assert "self.lair" in said.err
    assert "+ y = self.layer(x, 1)" in said.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([sys.executable, "-I", "x.py"], "ignores PYTHONPATH"),
        (["no-such-command-here"], "no such command"),
        ([], "no command"),
    ],
)
def test_commands_that_cannot_be_patched(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["run", "-c", "edits.yaml", "--", *command]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_module_in_a_zip_archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bundle.zip", "w") as archive:
        archive.write(folder / "target_mod.py", "target_mod.py")
    (folder / "target_mod.py").unlink()
    path = os.pathsep.join([str(ROOT), str(folder / "bundle.zip")])
    command = script(
        folder,
        """
        import inspect, target_mod
        print(target_mod.Model().forward(2), "raise" in inspect.getsource(target_mod.Model))
        """,
    )
    done = run(folder, command, env={"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (0, "300 True\n"), done.stderr


def test_nothing_is_installed_without_a_config(folder: Path) -> None:
    code = "import sys; print([type(f).__name__ for f in sys.meta_path], 'patcher' in sys.modules)"
    startup = ROOT / "patcher" / "startup"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(startup), str(ROOT)])}
    environment.pop("TENSORTAP_PATCH_PLAN", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "PatchingFinder" not in done.stdout
    assert done.stdout.endswith("False\n")


@pytest.mark.slow
def test_torchrun(folder: Path) -> None:
    (folder / "script.py").write_text(
        "import os, pathlib, target_mod\n"
        "pathlib.Path('rank_' + os.environ['RANK']).write_text(str(target_mod.Model().forward(2)))\n"
    )
    done = run(
        folder, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"]
    )
    assert done.returncode == 0, done.stderr
    # A file each: what two ranks print to one stream at the same moment may be mixed.
    assert [(folder / f"rank_{rank}").read_text() for rank in (0, 1)] == ["300", "300"]


LOOPBACK_ONLY = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Runs a command where there is no other interface than the loopback: Ray listens on all that there are."""


@pytest.mark.slow
def test_ray_actors(folder: Path) -> None:
    possible = shutil.which("unshare") and shutil.which("ip")
    if not possible or subprocess.run([*LOOPBACK_ONLY, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs 'unshare' and 'ip' and the right to use them, to keep Ray's ports from other interfaces")
    command = script(
        folder,
        """
        import ray
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
        @ray.remote
        class Actor:
            def work(self):
                import target_mod
                return target_mod.Model().forward(2)
        print(ray.get(Actor.remote().work.remote()))
        ray.shutdown()
        """,
    )
    # For Ray's token, logs and sockets, whose paths must be short.
    with tempfile.TemporaryDirectory() as home:
        done = run(folder, [*LOOPBACK_ONLY, *command], env={"HOME": home, "RAY_TMPDIR": home})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("300")
