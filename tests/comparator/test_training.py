"""Two runs that train: gradients, weights, and what is computed with weights that each side has updated by itself."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import comparator
from comparator.options import DimsOverride
from comparator.report.records import TensorComparison
from dumper import open_run
from dumper.recording.recorder import Recorder

STEPS = 4


class Summed(nn.Linear):
    """A linear map that adds up partial sums, as tensor parallelism does: other roundings and nothing else."""

    pieces = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pieces == 1:
            return F.linear(x, self.weight)
        parts = zip(x.chunk(self.pieces, -1), self.weight.chunk(self.pieces, 1), strict=True)
        return sum((F.linear(left, right) for left, right in parts), start=torch.zeros(()))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.after = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (Summed(width, width, bias=False) for _ in range(4))
        self.up, self.down = Summed(width, 2 * width, bias=False), Summed(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        normed = self.norm(x)
        q, k, v = (
            part(normed).view(batch, length, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.silu(self.up(self.after(x))))


class Decoder(nn.Module):
    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, width)
        self.layers = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.head = Summed(width, 64, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


Change = Callable[[int, torch.Tensor, Decoder], torch.Tensor]
"""What a fault makes of the loss of a step."""


def train(
    path: Path,
    pieces: int = 1,
    *,
    rate: float = 1e-2,
    change: Change | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    parts: int = 1,
    gradients: bool = True,
    values: bool = True,
    own_optimizer: bool = False,
    steps: str | None = None,
    save: Path | None = None,
    resume: Path | None = None,
) -> Path:
    torch.manual_seed(0)
    model = Decoder().to(dtype)
    for module in model.modules():
        if isinstance(module, Summed):
            module.pieces = pieces
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, foreach=False)
    recorder, first = Recorder(), 0
    if resume is not None:
        first, weights, state = torch.load(resume)
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    recorder.configure(enable=True, dir=str(path.parent), run=path.name, control=False, steps=steps, first_step=first)
    with recorder.attach(model, "**", grad=gradients) if values else contextlib.nullcontext():
        for step in range(first, STEPS):
            if save is not None and step == 2:
                torch.save((step, model.state_dict(), optimizer.state_dict()), save)
            ids = torch.randint(64, (4, 13), generator=torch.Generator().manual_seed(step))
            with recorder.step():
                optimizer.zero_grad()
                for part in ids.chunk(parts):
                    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        logits = model(part[:, :-1])
                    loss = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten()) / parts
                    (loss if change is None else change(step, loss, model)).backward()
                if gradients:
                    recorder.dump_model(model)
            if not own_optimizer:
                optimizer.step()
                continue
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(rate * parameter.grad.sign())
    recorder.close()
    return path


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("training") / "baseline")


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_roundings_agree(tmp_path: Path, pieces: int, dtype: torch.dtype) -> None:
    """Adam moves a weight whose gradient is nearly zero as far as any other: single weights are far apart."""
    rate = 1e-2 if dtype == torch.float32 else 1e-3
    one = train(tmp_path / "one", rate=rate, dtype=dtype)
    two = train(tmp_path / "two", pieces, rate=rate, dtype=dtype)
    report = comparator.compare(one, two)
    assert report.passed, report.describe()
    assert "agree up to step 0" in report.words
    assert "weights and later steps are held against relative_l2" in report.words


def test_steps_know_of_updates(baseline: Path, tmp_path: Path) -> None:
    run = open_run(baseline)
    assert [run.updates(step) for step in run.steps] == list(range(STEPS))
    own = open_run(train(tmp_path / "own", own_optimizer=True))
    assert not any(map(own.updates, own.steps))


def test_without_gradients_steps_know_that_weights_were_updated(tmp_path: Path) -> None:
    one, two = train(tmp_path / "one", gradients=False), train(tmp_path / "two", 2, gradients=False)
    report = comparator.compare(one, two)
    assert report.passed, report.describe()
    assert "Behind step 0 weights were updated" in report.words
    wrong = train(tmp_path / "wrong", 2, gradients=False, rate=1.2e-2)
    found = first_failure(comparator.compare(one, wrong))
    assert found.location.step == 1


def test_an_optimizer_of_ones_own_is_known_by_gradients(tmp_path: Path) -> None:
    one, two = train(tmp_path / "one", own_optimizer=True), train(tmp_path / "two", 2, own_optimizer=True)
    assert comparator.compare(one, two).passed


def test_a_training_that_is_resumed(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoint.pt"
    whole = train(tmp_path / "whole", save=saved)
    report = comparator.compare(whole, train(tmp_path / "resumed", resume=saved), start_step=2)
    assert report.passed, report.describe()
    assert report.summary.bits == "everything that was compared is bit-identical"
    _, weights, state = torch.load(saved)
    for one in state["state"].values():
        one["exp_avg"].zero_()  # the optimizer's state is lost
    torch.save((2, weights, state), saved)
    report = comparator.compare(whole, train(tmp_path / "without", resume=saved), start_step=2)
    assert not report.passed
    assert first_failure(report).location.step == 3


def test_what_is_all_behind_updates(tmp_path: Path) -> None:
    one, two = train(tmp_path / "one", steps="2-3"), train(tmp_path / "two", 2, steps="2-3")
    report = comparator.compare(one, two)
    assert report.passed, report.describe()
    assert report.words.startswith("Weights were updated before all that was compared")
    wrong = train(tmp_path / "wrong", 2, steps="2-3", change=functools.partial(scaled, 1.5, 2))
    assert not comparator.compare(one, wrong).passed


def test_runs_without_an_update_are_judged_as_strictly_as_any(tmp_path: Path) -> None:
    """One process may have trained something else before."""
    one, two = (train(tmp_path / name, rate=0.0, gradients=False, own_optimizer=True) for name in ("one", "two"))
    assert "up to step" not in comparator.compare(one, two).words


def test_gradients_of_autocast_are_as_exact_as_what_they_were_computed_in(tmp_path: Path) -> None:
    """They are float32, and so are the weights; what was computed in bfloat16 between them is not."""
    one, two = train(tmp_path / "one", autocast=True, rate=1e-3), train(tmp_path / "two", 2, autocast=True, rate=1e-3)
    report = comparator.compare(one, two)
    assert report.passed, report.describe()
    wrong = train(tmp_path / "wrong", 2, autocast=True, rate=1e-3, change=functools.partial(scaled, 1.05, 0))
    report = comparator.compare(one, wrong)
    assert not report.passed
    assert first_failure(report).tags["stream"] == "grad"


@pytest.mark.parametrize("parts", [1, 2])
def test_weights_alone_tell_that_a_loss_was_under_autocast(tmp_path: Path, parts: int) -> None:
    """All of them are float32; gradients that nothing was added to hold values of bfloat16."""
    exact = train(tmp_path / "exact", rate=1e-3, values=False)
    one = train(tmp_path / "one", autocast=True, rate=1e-3, values=False)
    two = train(tmp_path / "two", 2, autocast=True, rate=1e-3, values=False, parts=parts)
    report = comparator.compare(one, two)
    assert report.passed, report.describe()
    assert ("gradients of the baseline were computed in bfloat16" in report.words) == (parts > 1)
    assert "gradients of the target were computed in bfloat16" in comparator.compare(exact, one).words
    change = functools.partial(scaled, 1.05, 0)
    wrong = train(tmp_path / "wrong", 2, autocast=True, rate=1e-3, values=False, parts=parts, change=change)
    assert not comparator.compare(one, wrong).passed
    assert not comparator.compare(exact, train(tmp_path / "off", values=False, rate=1.2e-3)).passed


def test_gradient_accumulation_joins_rows_where_dims_name_them(baseline: Path, tmp_path: Path) -> None:
    accumulated = train(tmp_path / "accumulated", parts=2)
    report = comparator.compare(baseline, accumulated)
    assert "where dims name the tokens (--override-dims 'NAME:b s h'), all records of a step are joined" in str(
        report.summary
    )
    rows = (DimsOverride("^(embed|layers|head)", "b s h"),)
    # Values of a part have gradients as large as those of the whole: its mean is divided once more.
    assert comparator.compare(baseline, accumulated, overrides=rows).passed
    wrong = train(tmp_path / "wrong", parts=2, change=functools.partial(scaled, 1.5, 0))
    assert not comparator.compare(baseline, wrong, overrides=rows).passed


def test_equal_runs_are_equal_as_far_as_they_go(baseline: Path, tmp_path: Path) -> None:
    report = comparator.compare(baseline, train(tmp_path / "again"))
    assert report.passed
    assert report.words == "The runs agree bit for bit."


def test_a_disk_that_fills_up_while_a_run_trains(baseline: Path, tmp_path: Path) -> None:
    """The training goes on to its end, and what is there is compared; that is no agreement of the runs."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        run = train(folder / "cut")
        assert open_run(run).losses > 0
        for one, other in ((baseline, run), (run, baseline), (run, run)):
            report = comparator.compare(one, other)
            assert report.summary.exit_code == 1
            assert report.summary.failed == 0
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def scaled(factor: float, at: int, step: int, loss: torch.Tensor, model: Decoder) -> torch.Tensor:
    return loss * factor if step == at else loss


def weight_scaled(at: int, step: int, loss: torch.Tensor, model: Decoder) -> torch.Tensor:
    def scale(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.1

    if step == at:
        model.layers[1].down.weight.register_hook(scale)
    return loss


def first_failure(report: comparator.Report) -> TensorComparison:
    found = report.first_divergence
    assert isinstance(found, TensorComparison)
    return found


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(("factor", "at"), [(1.01, 0), (1.01, 2), (0.5, 3)])
def test_a_loss_that_is_normalised_otherwise(
    baseline: Path, tmp_path: Path, pieces: int, factor: float, at: int
) -> None:
    report = comparator.compare(baseline, train(tmp_path / "run", pieces, change=functools.partial(scaled, factor, at)))
    assert not report.passed
    found = first_failure(report)
    assert (found.name, found.tags["stream"], found.location.step) == ("head", "grad", at)


@pytest.mark.parametrize("at", [0, 1])
def test_one_gradient_that_is_scaled(baseline: Path, tmp_path: Path, at: int) -> None:
    report = comparator.compare(baseline, train(tmp_path / "run", 2, change=functools.partial(weight_scaled, at)))
    assert not report.passed
    found = first_failure(report)
    assert (found.name, found.location.step) == ("param.layers.1.down.weight", at)


def test_the_place_of_a_fault_behind_an_update_is_said(baseline: Path, tmp_path: Path) -> None:
    report = comparator.compare(baseline, train(tmp_path / "run", change=functools.partial(scaled, 1.5, 2)))
    assert "agree bit for bit up to step 0" in report.words
    assert "The runs part there: head stream=grad step 2: relative_l2 <= 0.00098 does not hold" in report.words


@pytest.mark.parametrize("rate", [1e-2, 1e-5])
def test_a_learning_rate_that_is_off(tmp_path: Path, rate: float) -> None:
    """However small it is beside the weights: these are measured by what training has changed."""
    one, clean = train(tmp_path / "one", rate=rate), train(tmp_path / "clean", 2, rate=rate)
    assert comparator.compare(one, clean).passed
    report = comparator.compare(one, train(tmp_path / "two", 2, rate=rate * 1.1))
    assert first_failure(report).location.step == 1
    assert any(one.name == "param.head.weight" and one.category == "failed" for one in report)


def test_joined_steps_are_judged_by_both(baseline: Path, tmp_path: Path) -> None:
    clean = comparator.compare(baseline, train(tmp_path / "clean", 2), token_aligner="concat_steps")
    assert clean.passed, clean.describe()
    for at in (0, 2):
        wrong = train(tmp_path / f"run-{at}", 2, change=functools.partial(scaled, 1.5, at))
        assert not comparator.compare(baseline, wrong, token_aligner="concat_steps").passed
