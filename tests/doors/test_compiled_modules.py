"""The compiled modules where they are not built, cannot be loaded, or run on an older processor."""

from __future__ import annotations

import _struct
import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import comparator.diagnosis.kernel
import comparator.measure.kernel
import dumper.values.fingerprint
from comparator.cli import main
from comparator.measure.kernel import measure_sums
from dumper.recording.recorder import Recorder
from tensortap.compiled import HEADERS_ELSEWHERE, MODULES, load, missing, sources_digest

CHECKOUT = Path(__file__).parents[2]
KERNELS = (comparator.diagnosis.kernel, comparator.measure.kernel, dumper.values.fingerprint)


def test_a_build_without_a_compiler_ends_well_and_says_what_is_missing(tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "setup.py", tmp_path)
    for name in MODULES:
        folder = Path(*name.split(".")[:-1])
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", "built"],
        cwd=tmp_path,
        env={**os.environ, "CC": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    for name in MODULES:
        assert f'building extension "{name}" failed' in built.stdout + built.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_setup_and_loader_mean_the_same_sources(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup = lambda ext_modules: print("
         "{one.name: one.define_macros[0][1].strip('\"') for one in ext_modules}); exec(open('setup.py').read())"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    folders = {name: CHECKOUT.joinpath(*name.split(".")[:-1]) for name in MODULES}
    expected = {name: sources_digest(str(folder), name) for name, folder in folders.items()}
    assert json.loads(said.replace("'", '"')) == expected


def test_headers_of_other_folders_are_sources_as_well(tmp_path: Path) -> None:
    for name, headers in HEADERS_ELSEWHERE.items():
        parts = name.split(".")[:-1]
        folder = tmp_path.joinpath(*parts)
        shutil.copytree(CHECKOUT.joinpath(*parts), folder)
        for header in headers:
            (folder / header).resolve().parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT.joinpath(*parts, header), folder / header)
        before = sources_digest(str(folder), name)
        (folder / headers[-1]).write_text("/* another */")
        assert before != sources_digest(str(folder), name) is not None
        # Each include that is not in the folder is one of these.
        text = "".join(path.read_text() for path in CHECKOUT.joinpath(*parts).glob("*.[ch]"))
        included = set(re.findall(r'#include "(\w+\.h)"', text)) - {path.name for path in folder.iterdir()}
        assert included <= {Path(header).name for header in headers}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, bytes], str]]:
    """Makes a package with one file in it; gives the name of its compiled module."""

    def make(file: str, content: bytes) -> str:
        name = f"package{len(list(tmp_path.iterdir()))}"
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / file).write_bytes(content)
        return f"{name}._compiled"

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in [name for name in sys.modules if name.startswith("package")]:
        del sys.modules[name]


SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        (f"_compiled{SUFFIX}", b"\x7fELF and nothing more", "file too short|invalid ELF header"),
        (f"_compiled{SUFFIX}", b"no library" * 1000, "invalid ELF header"),
        (f"_compiled{SUFFIX}", Path(_struct.__file__).read_bytes()[:5000], "shorter than it says"),
        (f"_compiled{SUFFIX}", Path(_struct.__file__).read_bytes()[:100], "shorter than it says"),
        (f"_compiled{SUFFIX}", Path(_struct.__file__).read_bytes(), "does not define module export function"),
        ("_compiled.cpython-38-x86_64-linux-gnu.so", b"", "built for another Python"),
        ("_compiled.py", b"import nowhere_to_be_found", "nowhere_to_be_found"),
        ("_compiled.py", b"raise SystemError('initialization failed')", "initialization failed"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_named_once(
    package: Callable[[str, bytes], str], file: str, content: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(package(file, content)) is None
    (line,) = caplog.messages
    assert line.startswith("tensortap: kernel-not-loaded: ")
    assert "pip install ." in line
    assert any(one in line for one in why.split("|")), line


def test_a_module_of_other_sources_is_not_used(
    package: Callable[[str, bytes], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = package("_compiled.py", b"'0123abcd'")
    assert load(name) is not None, "an installed package may hold no sources"
    (tmp_path / name.partition(".")[0] / "_compiled.c").write_text("/* newer */")
    assert load(name) is None
    assert "from other sources" in caplog.text


def test_one_that_was_never_built_is_no_trouble(
    package: Callable[[str, bytes], str], caplog: pytest.LogCaptureFixture
) -> None:
    assert load(package("other.py", b"")) is None
    assert not caplog.messages


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of a chain of taps, the second of which has a fault."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        recorder = Recorder()
        recorder.configure(enable=True, control=False, dir=str(folder), run=name)
        for step in range(2):
            recorder.step()
            x = np.random.default_rng(step).standard_normal((32, 48)).astype(np.float32)
            for layer in range(4):
                x = x * np.float32(1.5 if name == "b" and layer == 2 else 1.01)
                recorder.dump("x", x, "t h", layer_id=layer)
        recorder.close()
    return folder / "a", folder / "b"


def report(runs: tuple[Path, Path], file: Path) -> list[dict[str, Any]]:
    assert main([*map(str, runs), "--jobs", "1", "--report-path", str(file), "-q"]) == 1
    return [json.loads(line) for line in file.read_text().splitlines()[1:]]  # without the command line


def nearly(one: Any) -> Any:
    """A report with its numbers to nine digits: sums of channels are added in another order."""
    if isinstance(one, float):
        return float(f"{one:.9g}")
    if isinstance(one, dict):
        return {key: nearly(value) for key, value in one.items()}
    return [nearly(value) for value in one] if isinstance(one, list) else one


@pytest.mark.skipif(bool(missing()), reason="the compiled modules are not built: python setup.py build_ext -i")
def test_a_comparison_without_them_says_the_same(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = report(runs, tmp_path / "compiled.jsonl")
    for kernel in KERNELS:
        monkeypatch.setattr(kernel, "_compiled", None)
    assert nearly(report(runs, tmp_path / "numpy.jsonl")) == nearly(compiled)


QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
an_older_processor = pytest.mark.skipif(
    QEMU is None,
    reason="qemu-user is not installed: no older processor is tried (its instructions are, in test_kernel.py)",
)


def on_processor(name: str, program: str) -> list[str]:
    """The lines that ``program`` prints on a processor, which ends a process that uses a later instruction."""
    assert QEMU is not None
    interpreter = os.path.realpath(sys.executable)
    ran = subprocess.run(
        [QEMU, "-cpu", name, interpreter, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@pytest.mark.slow
@an_older_processor
@pytest.mark.parametrize(("name", "level"), [("Nehalem", 0), ("Haswell", 1)])
def test_a_processor_without_newer_instructions(name: str, level: int) -> None:
    instructions, *results = on_processor(
        name,
        "import numpy, json\n"
        "from tensortap.compiled import MODULES, load\n"
        "from comparator.measure.kernel import measure_sums\n"
        "from dumper.values.fingerprint import fingerprint\n"
        "print(json.dumps([load(name).limit(2) for name in MODULES if hasattr(load(name), 'limit')]))\n"
        "x = numpy.random.default_rng(0).standard_normal((37, 513), numpy.float32)\n"
        "print(repr(measure_sums(x, x * 2)[0])); print(fingerprint('float32', x.shape, x))",
    )
    x = np.random.default_rng(0).standard_normal((37, 513), np.float32)
    sums, _ = measure_sums(x, x * 2)
    assert set(json.loads(instructions)) == {level}
    assert results == [repr(sums), dumper.values.fingerprint.fingerprint("float32", x.shape, x)]


@pytest.mark.slow
@an_older_processor
@pytest.mark.parametrize("name", ["Nehalem", "Haswell"])
def test_a_comparison_on_such_a_processor_says_the_same(name: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    command = [*map(str, runs), "--jobs", "1", "--report-path", str(there), "-q"]
    assert on_processor(name, f"from comparator.cli import main\nprint(main({command!r}))")[-1] == "1"
    lines = there.read_text().splitlines()[1:]
    assert [json.loads(line) for line in lines] == report(runs, tmp_path / "here.jsonl")
