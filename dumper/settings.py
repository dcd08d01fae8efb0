"""What can be set: every field is a keyword of ``dumper.configure`` and, in capitals, a ``TENSORTAP_`` variable."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from dumper import sglang_settings
from dumper.rules.expressions import Expression
from dumper.rules.levels import LevelRules
from dumper.rules.step_rule import StepRule

PREFIX = "TENSORTAP_"
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]i?)?B?", re.IGNORECASE)
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACE = re.compile(rf"(?P<axis>{_AXIS.pattern})=(?P<rank>\d+)/(?P<size>\d+)")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""What an address on object storage begins with, also once it went through ``pathlib.Path``."""
_LAUNCH_TIME = "{time}"
_LAUNCH_VARIABLE = "TENSORTAP_LAUNCH_TIME"
"""Set by the first process that is asked, and inherited by those that it starts."""
_OF_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Variables of processes that a launcher has started beside others, once for every rank."""
_NARROWING = ("filter", "level", "steps", "on_nan", "enable_value", "enable_output_file")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and says what it may be."""

    def __init__(self, message: str, *, narrowing: bool = False) -> None:
        super().__init__(message)
        self.narrowing = narrowing
        """Whether more would be recorded without it."""


class PlaceError(SettingsError):
    """A place where no run can be written."""


@dataclass(frozen=True)
class Settings:
    """The settings of one process; immutable, so that the model's thread may read them without a lock."""

    enable: bool = False
    dir: str = "./tensortap-runs"
    run: str = "run"
    """The run directory is ``dir/run``. ``{time}`` in it becomes the time when the program was started."""
    filter: str | None = None
    """Which records are wanted (``dumper/rules/expressions.py``); None: all."""
    level: str | None = None
    """How much is kept of them (``dumper/rules/levels.py``); None: ``full``."""
    steps: str | None = None
    """Which steps are recorded (``dumper/rules/step_rule.py``); None: all."""
    first_step: int = 0
    """The number of the first step: of a training that is resumed, the one that it had in the run from the start."""
    on_nan: int | None = None
    """Write nothing until a value holds NaN or infinity, then begin with this many steps before it."""
    enable_value: bool = True
    """Whether the values are recorded that ``dump`` is given; without, gradients alone are."""
    enable_grad: bool = False
    """Whether the gradient is recorded of every value that ``dump`` is given and that gets one."""
    enable_model_value: bool = True
    """Whether ``dump_model`` records parameters."""
    enable_model_grad: bool = True
    """Whether ``dump_model`` records the gradients of parameters."""
    non_intrusive_mode: str = "core"
    """What ``register_non_intrusive_dumper`` records of a model: the batch that it is given (``core``), what all
    modules are given and return as well (``all``), or nothing (``off``)."""
    cleanup_previous: bool = False
    """Whether the files of an earlier launch are deleted from the run directory."""
    outside_steps: str = "count"
    """What becomes of records outside a step in a process whose steps are explicit: ``count`` or ``record``."""
    memory_budget: int = 1 << 30
    """Bytes of values on their way to the file."""
    when_full: str = "wait"
    """What happens at the end of the budget: the model waits (``wait``) or the record is counted as lost (``drop``)."""
    graph_memory: int = 1 << 30
    """Bytes on each device for the values of taps inside CUDA graphs; what comes when they are used up is left out."""
    graph_filter: str | None = None
    """Which taps are put into CUDA graphs when these are captured, an expression over name and tags; None: all."""
    graph_padding: str = "trim"
    """What becomes of rows with which a pass is padded to the size of its graph: ``trim`` or ``keep``."""
    strict: bool = False
    """Whether the capture of a CUDA graph fails when what its taps give would not be recorded."""
    compression: str | None = None
    """``zstd``, or None."""
    segment_size: int = 4 << 30
    """Bytes; a file that has grown beyond it is followed by another."""
    control: bool | None = None
    """Whether the process can be controlled while it runs; None: when recording is enabled at the start."""
    http_port: int | None = None
    """Port of the HTTP control endpoint on the loopback interface; None: no endpoint."""
    http_token: str | None = None
    parallel: Mapping[str, tuple[int, int]] | None = None
    """Where this rank stands: axis name to ``(rank, size)``, ``tp=0/2,dp=1/4`` as text; comes before what is found."""
    direct_launch: bool = True
    """Whether compiled code launches kernels on CUDA devices by itself, straight through the driver, also to copy."""
    access: str = "private"
    """Who may read what is recorded: ``private``, its owner alone; ``umask``, whoever the process's umask says."""

    @property
    def run_path(self) -> Path:
        return Path(self.dir) / self.run

    @property
    def folder_mode(self) -> int:
        """Of folders that are made; the umask takes from it."""
        return 0o700 if self.access == "private" else 0o777

    @property
    def file_mode(self) -> int:
        """Of files that are made; the umask takes from it."""
        return 0o600 if self.access == "private" else 0o666

    @property
    def controlled(self) -> bool:
        """Whether the process takes commands while it runs."""
        return (self.enable or self.http_port is not None) if self.control is None else self.control

    def wants_step(self, step: int) -> bool:
        """Whether step number ``step`` is to be recorded."""
        return self.steps is None or _step_rule(self.steps).wants(step)

    def changed(self, **changes: Any) -> Settings:
        """These settings with some values replaced; texts are read as in the environment.

        Settings of SGLang's dumper may come by their names there. Raises SettingsError for an unknown key (with the
        nearest) or a value that does not fit.
        """
        read = dict(checked(key, value) for key, value in changes.items())
        return dataclasses.replace(self, **{key: value for key, value in read.items() if key in _READERS})

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> tuple[Settings, list[SettingsError]]:
        """The settings that the environment asks for, and what was wrong with the others of its variables.

        Variables that belong to other parts of tensortap are left alone. Where one that says what is recorded cannot be
        read, nothing is, until it is told anew: less was asked for than everything. Nor is anything recorded where the
        place cannot be used: it would fill another.
        """
        settings, errors, placeless = cls(), [], False
        for variable, key, text in _variables(environment):
            try:
                settings = settings.changed(**{key: text})
            except SettingsError as error:
                meant_less, elsewhere = key in _NARROWING, isinstance(error, PlaceError)
                consequence = "nothing is recorded, since less than everything was meant" if meant_less else "ignored"
                consequence = "nothing is recorded" if elsewhere else consequence
                placeless |= elsewhere
                errors.append(SettingsError(f"{variable}: {error}; {consequence}", narrowing=meant_less))
        if settings.enable and any(error.narrowing for error in errors):
            settings = settings.changed(enable=False, control=settings.controlled)
        return settings.changed(enable=False, control=False) if placeless else settings, errors


def is_in_environment(key: str, environment: Mapping[str, str]) -> bool:
    """Whether a variable says what a setting is, which may be named as in SGLang's dumper."""
    name = sglang_settings.our_name(key)
    return any(sglang_settings.our_name(known) == name for _, known, _ in _variables(environment))


def _variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, setting and text of every variable that counts."""
    for key in _READERS:
        text = environment.get(PREFIX + key.upper())
        if text is not None:
            yield PREFIX + key.upper(), key, text
    for key, text in sglang_settings.asked_for(environment).items():
        known = key in sglang_settings.SAME or sglang_settings.is_known(key)
        if known and PREFIX + sglang_settings.our_name(key).upper() not in environment:
            yield sglang_settings.PREFIX + key.upper(), key, text


@functools.lru_cache(maxsize=8)
def _step_rule(text: str) -> StepRule:
    return StepRule.parse(text)


def checked(key: str, value: Any) -> tuple[str, Any]:
    """The name of a setting and its value in its own type; a name that is none of ours where SGLang's dumper has a
    setting that needs no counterpart. Raises SettingsError."""
    if key not in _READERS:
        if sglang_settings.is_known(key):
            return _checked_of_sglang(key, value)
        near = difflib.get_close_matches(key, _READERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_READERS)}"
        raise SettingsError(f"unknown setting {key!r}; {hint}")
    try:
        return key, _READERS[key](value)
    except ValueError as error:
        raise _of_setting(key, error) from None


def _of_setting(key: str, error: ValueError) -> SettingsError:
    return (PlaceError if isinstance(error, PlaceError) else SettingsError)(f"setting {key}: {error}")


def _checked_of_sglang(key: str, value: Any) -> tuple[str, Any]:
    missing = sglang_settings.without_counterpart(key, value)
    if missing is not None:
        raise SettingsError(f"setting {key}: {missing}")
    name = sglang_settings.our_name(key)
    try:
        return name, _READERS[name](sglang_settings.our_value(key, value)) if name in _READERS else None
    except ValueError as error:
        raise _of_setting(key, error) from None


def check_setting(key: str, value: Any) -> None:
    """Raises SettingsError when a setting cannot have this value."""
    checked(key, value)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{value!r} is neither true nor false; write 1 or 0")


def _text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{value!r} is no text")
    return str(os.fspath(value))


def _folder(value: Any) -> str:
    text = _text(value)
    found = _ADDRESS.match(text)
    if found is not None:
        raise PlaceError(  # without the address, which may hold a secret
            f"{found[0]}/… is an address, and a run is recorded to a folder of this machine; give one, and copy the "
            "run from there once it is complete (docs/scale.md)"
        )
    return text


def _run_name(value: Any) -> str:
    return with_launch_time(_folder(value))


def _number(value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{value!r} is no whole number") from None
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = _SIZE.fullmatch(str(value).strip())
    size = 0
    if found:
        unit = (found["unit"] or "").lower()
        size = int(float(found["number"]) * (1024 if not unit or unit.endswith("i") else 1000) ** _POWERS[unit[:1]])
    if size <= 0:
        raise ValueError(f"{value!r} is no size; write bytes, or 512MiB, or 4GB")
    return size


def _parallel(value: Any) -> dict[str, tuple[int, int]]:
    """``{"tp": (0, 2)}``, or ``tp=0/2,dp=1/4``."""
    given = value
    if isinstance(value, str):
        found = [_PLACE.fullmatch(part.strip()) for part in value.split(",")]
        given = {place["axis"]: (place["rank"], place["size"]) for place in found if place} if all(found) else None
    layout: dict[str, tuple[int, int]] = {}
    if isinstance(given, Mapping):
        for axis, place in given.items():
            if isinstance(place, str):
                break
            try:
                rank, size = (int(number) if isinstance(number, str) else index(number) for number in place)
            except (TypeError, ValueError):
                break
            if not isinstance(axis, str) or not _AXIS.fullmatch(axis) or not 0 <= rank < size:
                break
            layout[axis] = (rank, size)
        else:
            return layout
    raise ValueError(f"{value!r} is no parallel layout; write {{'tp': (rank, size)}}, as text tp=0/2,dp=1/4")


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
        return str(value)

    return read


def _optional(read: Callable[[Any], Any], *, nothing: tuple[str, ...] = ("", "none")) -> Callable[[Any], Any]:
    def read_optional(value: Any) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() in nothing):
            return None
        return read(value)

    return read_optional


def _parsed(parse: Callable[[str], object]) -> Callable[[Any], str]:
    """A setting that is kept as text once it is known to parse."""

    def read(value: Any) -> str:
        text = _text(value)
        parse(text)
        return text

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "enable": _boolean,
    "dir": _folder,
    "run": _run_name,
    "filter": _optional(_parsed(Expression)),
    "level": _optional(_parsed(LevelRules.parse)),
    "steps": _optional(_parsed(StepRule.parse)),
    "first_step": _number,
    "on_nan": _optional(_number),
    "enable_value": _boolean,
    "enable_grad": _boolean,
    "enable_model_value": _boolean,
    "enable_model_grad": _boolean,
    "non_intrusive_mode": _one_of("core", "all", "off"),
    "cleanup_previous": _boolean,
    "outside_steps": _one_of("count", "record"),
    "memory_budget": _size,
    "when_full": _one_of("wait", "drop"),
    "graph_memory": _size,
    "graph_filter": _optional(_parsed(Expression)),
    "graph_padding": _one_of("trim", "keep"),
    "strict": _boolean,
    "compression": _optional(_one_of("zstd")),
    "segment_size": _size,
    "control": _optional(_boolean),
    "http_port": _optional(_number),
    "http_token": _optional(_text),
    "parallel": _optional(_parallel),
    "direct_launch": _boolean,
    "access": _one_of("private", "umask"),
}


def with_launch_time(name: str) -> str:
    """A name whose ``{time}`` is the time of the launch in UTC, such as ``20260131-093000-250``."""
    if _LAUNCH_TIME not in name:
        return name
    started = os.environ.get(_LAUNCH_VARIABLE, "")
    if not started.replace("-", "").isdigit():
        started = os.environ[_LAUNCH_VARIABLE] = _written(_started())
    return name.replace(_LAUNCH_TIME, started)


def _started() -> float:
    """Seconds since the epoch: of the command of ``patcher run``, of the launcher where this process is one of its
    ranks, else of this process."""
    patched = os.environ.get("TENSORTAP_PATCH_LAUNCH", "").partition(":")[0]
    if patched.isdecimal():
        number = int(patched)
    else:
        number = os.getppid() if any(name in os.environ for name in _OF_RANKS) else os.getpid()
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - up + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time()


def _written(seconds: float) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{int(seconds % 1 * 1000):03d}"
