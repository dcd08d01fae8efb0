"""What a recording is to everything that reads one: the protocols ``Run``, ``Record`` and ``Header``, and the plain
values that they hold. ``dumper.open_run`` returns a ``Run``, whatever kind of recording there is on disk. What most
kinds have in common is in ``dumper.reading.base``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from dumper.format.frames import FormatError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars
    import torch

    from dumper.layout import TokenLayout
    from dumper.reading.named_files import NamedFile
    from dumper.storage.places import Place, Workers
    from tensortap.progress import Progress


READING_ERRORS = (FormatError, ValueError, RecursionError)
"""What reading a record raises where it is damaged, or holds nothing of the kind that is asked for."""


class RunError(ValueError):
    """A path that is no run; the message says what it is and what to do."""


class Problem(Struct, frozen=True):
    """Something about a run that its reader should know."""

    kind: str
    """``truncated``, ``corrupted``, ``missing_rank``, ``missing_records``, ``mixed_runs``, ``repaired``, ``lost``,
    ``left_out``, ``recorded_beside``, ``unclosed``, ``empty``, ``unreadable`` (docs/messages.md)."""
    message: str


class TapCoverage(Struct, frozen=True):
    """One tap on one rank, and how often it fired there."""

    id: str
    name: str
    rank: int
    file: str
    line: int
    fired: int
    kind: str = "dump"
    """``dump``, or ``step`` for a tap that only marks forward passes."""
    inputs: tuple[str, ...] = ()
    """Names of the taps whose values this one is computed from: ``NAME`` with the same tags, ``NAME@-1`` of the layer
    before (``layer_id`` less one). Empty where the patch config does not say."""
    operation: str | None = None
    """What computes the value: ``attention``, ``linear``, ``sum``, ``norm``, ``mlp``, ``moe``, ``router`` or
    ``logits``; None where the patch config does not say."""

    installed: bool = True
    """False for a tap that the command's patch configs planned, in a module that this process never imported."""

    @property
    def silent(self) -> bool:
        """Whether it never fired."""
        return self.fired == 0


class GraphCoverage(Struct, frozen=True):
    """What a rank recorded of CUDA graphs, and what of them was silent."""

    rank: int
    captured: int = 0
    """Graphs that were captured with taps."""
    replays: int = 0
    """Replays that were recorded."""
    values: int = 0
    """Values of these."""
    silent_graphs: int = 0
    """Graphs that were captured while recording was off."""
    silent_replays: int = 0
    """Replays of these while recording was on."""
    unknown_captures: int = 0
    """Values that ran through taps while something was captured that torch knows nothing of."""
    left_out_values: int = 0
    """Values that recorded replays would have had beside ``values``."""
    left_out: tuple[tuple[str, str, int], ...] = ()
    """Tap or name, reason, and in how many captures it was left out of the graph."""


class Written(Struct, frozen=True):
    """How far a run has come that may still be written."""

    complete_up_to: int | None
    """The last step of which no record is to come; None where there is none yet."""
    closed: bool
    """Whether every rank came to an orderly end."""
    gone: bool = False
    """Whether no process is left that could go on with it. False also where that cannot be told: on another machine."""


class Header(Protocol):
    """What a rank says of itself."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def parallel(self) -> Mapping[str, tuple[int, int]]:
        """Axis name to ``(rank, size)``, axes of size 1 included."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Distribution name to version."""

    @property
    def framework(self) -> str | None: ...
    @property
    def settings(self) -> Mapping[str, str]:
        """Flags, environment variables and switches of torch that may change numbers; empty where none are known."""

    @property
    def patch_config(self) -> Mapping[str, Any] | None:
        """``paths``, ``sha256`` and ``texts`` of the patch configs that were active, None without any."""


class Record(Protocol):
    """What was recorded at one place at one moment on one rank.

    Nothing of the value is read before ``array``, ``tensor``, ``value``, ``statistics`` or ``fingerprint``.
    """

    @property
    def name(self) -> str: ...
    @property
    def step(self) -> int | None:
        """None outside any step."""

    @property
    def rank(self) -> int: ...
    @property
    def tags(self) -> Mapping[str, Any]: ...
    @property
    def occurrence(self) -> int:
        """The n-th record, from 0, of this name and these tags in this step on this rank."""

    @property
    def order(self) -> int:
        """A number that grows with each record of this rank."""

    @property
    def tap(self) -> str | None:
        """Id of the tap; None for a call in the program's own code, and where taps have no ids."""

    @property
    def kind(self) -> str:
        """``tensor`` or ``value``."""

    @property
    def level(self) -> str:
        """``full``, ``sample``, ``stats`` or ``hash``."""

    @property
    def dtype(self) -> str | None:
        """torch's name without ``torch.``: ``bfloat16``; None for a value that is no tensor."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the tensor that was dumped, whatever its level; None for a value that is no tensor."""

    @property
    def dims(self) -> str | None: ...
    @property
    def stream(self) -> str:
        """``value`` or ``grad``."""

    @property
    def recompute(self) -> bool:
        """Whether the value was computed a second time, for activation checkpointing."""

    @property
    def graph(self) -> Mapping[str, Any] | None:
        """Of a value that a replay of a CUDA graph left: what is known of the graph (``runner``, ``role``, ``tokens``,
        ``requests``); else None."""

    @property
    def nbytes(self) -> int:
        """Bytes that the value takes in its file."""

    @property
    def sampled_rows(self) -> range | None:
        """Of level ``sample``: the rows (of the first dimension) that were kept; else None."""

    @property
    def source(self) -> str:
        """Where the record stands, for messages: a file name, and an offset where files hold many records."""

    @property
    def filename(self) -> str | None:
        """The name of the file that holds this record alone; None where files hold many records."""

    @property
    def named_file(self) -> NamedFile | None:
        """That file, where its name tells the record; else None."""

    @property
    def error(self) -> str | None:
        """Why nothing of the record can be read, its dtype included; None when that much is readable."""

    @property
    def value(self) -> Any:
        """The value of a record that is no tensor. Raises ValueError for a tensor, and ValueError or
        FormatError where it cannot be read."""

    @property
    def statistics(self) -> Mapping[str, float | int] | None:
        """Of level ``stats``: what ``dumper/values/measures.py`` lists; else None."""

    @property
    def fingerprint(self) -> str | None:
        """Of level ``hash``: 32 hexadecimal digits; else None."""

    @property
    def fingerprint_scheme(self) -> str | None:
        """Of level ``hash``: how the fingerprint was computed; only those of one scheme compare. Else None."""

    @property
    def checksums(self) -> tuple[str, tuple[tuple[int, int], ...]] | None:
        """What is known of the bytes without reading them: their compression (``""`` for none), and of each piece its
        length and its XXH3-64. None where nothing is."""

    @property
    def shortened(self) -> str | None:
        """In words that the file is shorter than when it was opened; None where it is not, or it is not known."""

    def is_intact(self) -> bool:
        """Whether the recorded bytes match their checksums; where there are none, whether they can be read."""

    def array(self) -> npt.NDArray[Any]:
        """The tensor as numpy (``ml_dtypes`` for bf16 and fp8), of a sample the rows that were kept. May be read-only.

        Raises ValueError when the record is no tensor or holds no elements (``stats``, ``hash``), and ValueError or
        FormatError when it cannot be read.
        """

    def lazy_array(self) -> npt.NDArray[Any] | None:
        """The same as ``tensortap.lazy_rows`` has it, read some rows at a time; None where it cannot be read so. Raises
        as ``array`` does."""

    def tensor(self) -> torch.Tensor:
        """The tensor on the CPU; imports torch. To be cloned before it is modified. Raises as ``array`` does."""

    def let_go(self, first: int = 0, stop: int | None = None) -> None:
        """Give back the memory of what is mapped of the file, or of some bytes of the payload; arrays over it stay
        valid and are read anew."""


class RecordColumns(Struct, frozen=True, eq=False):
    """All records, in the order of ``Run.records``. Those of one kind differ in rank, step, occurrence, order and
    content alone."""

    kinds: Sequence[Record]
    """The first record of each kind."""
    kind: npt.NDArray[np.int32]
    """Of each record, the number of its kind."""
    rank: npt.NDArray[np.int32]
    step: npt.NDArray[np.int64]
    """Of each record, the step; ``OUTSIDE_STEPS`` (``dumper/reading/columns.py``) for none."""
    occurrence: npt.NDArray[np.uint32]

    @property
    def one_by_one(self) -> bool:
        """Whether every record is a kind of its own."""
        return len(self.kinds) == len(self.kind)


class ArraysInFile(Struct, frozen=True, eq=False):
    """Arrays of one dtype and shape that lie in one mapped file, in one piece each, as they were recorded."""

    at: npt.NDArray[np.int64]
    """Which of the records that were asked for they are."""
    data: Any
    """The bytes of the file."""
    starts: npt.NDArray[np.int64]
    """Of each array the place of its first byte."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Run(Protocol):
    """A recording of one process group. No payload is read before it is asked for."""

    @property
    def path(self) -> Place: ...
    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks that have a file."""

    @property
    def world_size(self) -> int:
        """The largest world size that a rank knows of, and at least the number of ranks there are."""

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """Ranks of the world without a file."""

    @property
    def headers(self) -> Mapping[int, Header]:
        """By rank, of every rank in ``ranks``."""

    @property
    def steps(self) -> tuple[int, ...]: ...
    @property
    def records(self) -> Sequence[Record]:
        """By rank, in the order in which they were recorded."""

    @property
    def taps(self) -> Sequence[TapCoverage]:
        """Every tap that was installed on a rank; empty for recordings that do not know."""

    @property
    def silent_taps(self) -> tuple[str, ...]:
        """Taps that were installed and fired on no rank, with their place in the source."""

    @property
    def cuda_graphs(self) -> Sequence[GraphCoverage]:
        """What was recorded of CUDA graphs, one entry for each rank that had some and came to an orderly end."""

    @property
    def outside_steps(self) -> int:
        """Values that came outside any step, where steps are explicit, and were counted alone."""

    @property
    def losses(self) -> int:
        """Values that were to be recorded and are not in the run, as far as is known."""

    @property
    def problems(self) -> Sequence[Problem]:
        """Everything about the run that its reader should know before trusting it."""

    @property
    def has_named_files(self) -> bool:
        """Whether each record has a ``named_file``."""

    @property
    def is_stored(self) -> bool:
        """Whether the run lies on object storage."""

    @property
    def changed_files(self) -> Sequence[str]:
        """In words, which files others have changed since the run was opened, as far as is known: what was read of them
        may be neither what they held nor what they hold."""

    def written(self) -> Written | None:
        """How far the run had come when it was opened; None where a recording does not tell."""

    def read_ahead(self) -> None:
        """All records will be asked what they say of their values, in their order: where each is a file, reading begins
        beside what this process does meanwhile."""

    def expect(self, records: Iterable[Record]) -> None:
        """These records will be read, in about this order: what lies on object storage is read ahead. They are not
        looked at where the run is on a disk."""

    def read_together(self, records: Iterable[Record]) -> None:
        """These records are read next, each once: small ones of many files in one call, which takes less time. They
        are not looked at where a file holds many records."""

    def arrays_in_files(self, numbers: npt.NDArray[np.int64], most: int) -> Iterable[ArraysInFile]:
        """Of the records of these numbers those whose arrays lie in mapped files as they were recorded, are intact and
        take at most ``most`` bytes. The others are to be read one by one, which says what is wrong with them."""

    def layout(self, step: int, rank: int) -> TokenLayout | None:
        """The token layout of a step on a rank, None when it is not known. Raises FormatError when it is malformed."""

    def updates(self, step: int) -> int:
        """How often an optimizer had updated weights before a step; 0 where nothing tells."""

    def select(
        self, *, name: str | None = None, step: int | None = None, rank: int | None = None, **tags: Any
    ) -> Sequence[Record]:
        """The records with this name, step, rank and these tags, in order."""

    def columns(self) -> RecordColumns:
        """All records as columns, for what looks at millions of them; made anew with each call."""

    def to_polars(self) -> polars.DataFrame:
        """The index as a table: one row per record (``dumper/reading/columns.py``)."""


class Reader(Struct, frozen=True):
    """How recordings of one kind are found and opened. A folder of ``dumper/readers`` gives one as ``READER``."""

    files: str
    """What a recording of this kind consists of, for messages: ``rank-*.msgpack``."""
    holds: Callable[[Any], bool]
    """Whether a directory is such a recording."""
    open: Callable[[Any, Progress], Run]
    """Opens it without reading a payload. Raises RunError when it cannot tell which recording is meant."""
    hint: Callable[[Any], str | None] = lambda path: None
    """Of a directory that is no recording: what the user may have meant, None when there is nothing to say."""
    order: int = 0
    """Readers with a lower number are asked first: those that look at names in the directory itself."""
    from_storage: bool = False
    """Whether it takes a ``StoredPath`` as well: a folder on object storage."""
    open_with: Callable[[Any, Progress, Workers], Run] | None = None
    """The same as ``open``, where other processes look at the files; None for a kind whose files are looked at here."""
