"""Every shipped SGLang config, against the sources of the releases: each tap lies exactly where it has to."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from patcher.check import Checked, check_configs
from testbed.paths import CONFIGS
from testbed.wheels import RELEASES, known_releases, sglang_sources
from tests.configs.anchors import ANCHORS, Anchor
from tests.configs.places import Place, function_body, places

SGLANG = CONFIGS / "sglang"
FAULTS = sorted((CONFIGS / "faults").glob("*.yaml"))
FORWARD = "sglang.srt.model_executor.model_runner.ModelRunner.forward"
CALLED = re.compile(r"__tensortap_dumper__|__tensortap_taps__\[\d+\]")
BEGIN = """\
try:
    if not self.is_draft_worker:
        try:
            TAP.step(forward_batch)
        except Exception:
            TAP.failed()
            TAP.step()
except Exception:
    TAP.failed()"""
END = """\
try:
    if not self.is_draft_worker:
        TAP.end_step()
except Exception:
    TAP.failed()"""
LOGITS = """\
if TAP.on:
    try:
        if not self.is_draft_worker and \
getattr(__tensortap_return__.logits_output, 'next_token_logits', None) is not None:
            TAP.record(__tensortap_return__.logits_output.next_token_logits, 't vocab # tp:replicated')
    except Exception:
        TAP.failed()"""


@pytest.fixture(scope="session", params=known_releases())
def release(request: pytest.FixtureRequest) -> str:
    """A release of SGLang whose sources are there."""
    sglang_sources(request.param)
    return str(request.param)


def test_every_config_has_anchors() -> None:
    assert {path.stem for path in SGLANG.glob("*.yaml")} == set(ANCHORS) | {"forward", "embedding"}


def test_the_required_releases_are_among_them() -> None:
    assert {"0.5.9", "0.5.10.post1", "0.5.13.post1", "0.5.23"} <= set(RELEASES)


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(ANCHORS))
def test_taps_lie_where_they_have_to(config: str, release: str) -> None:
    functions = {anchor.function for anchor in ANCHORS[config]}
    found = [place for place in all_places(release) if place.function in functions]
    expected = [anchor for anchor in ANCHORS[config] if anchor.text(release) is not None]
    for anchor in expected:
        at = [place for place in found if (place.tap, place.function) == (anchor.tap, anchor.function)]
        assert at, f"no tap {anchor.tap} in {anchor.function}; there are: {found}"
        for place in at:
            assert beside(anchor, place, release), f"{anchor} expected, {place} found"
    assert {(place.tap, place.function) for place in found} == {(one.tap, one.function) for one in expected}


@pytest.mark.slow
def test_there_are_no_other_taps(release: str) -> None:
    functions = {anchor.function for anchors in ANCHORS.values() for anchor in anchors}
    assert {place.function for place in all_places(release)} <= functions | {FORWARD}


@pytest.mark.slow
def test_a_pass_is_a_step(release: str) -> None:
    body = [CALLED.sub("TAP", one) for one in function_body(all_checked(release), FORWARD)]
    assert body[0] == BEGIN
    assert body[-4:] == ["__tensortap_return__ = output", LOGITS, END, "return __tensortap_return__"]


@pytest.mark.slow
def test_a_pass_without_logits_is_a_step(release: str) -> None:
    """The config that takes the place of ``forward`` where a model is served for its embeddings."""
    embedding = check(release, SGLANG / "embedding.yaml")
    found = {(place.tap, place.function) for place in places(embedding)}
    assert found == {("embeddings", FORWARD), ("pooler_input", "sglang.srt.layers.pooler.Pooler.forward")}
    body = [CALLED.sub("TAP", one) for one in function_body(embedding, FORWARD)]
    assert body[0] == BEGIN
    assert body[-2:] == [END, "return __tensortap_return__"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda path: path.stem)
def test_a_planted_fault_lands_beside_the_taps(fault: Path, release: str) -> None:
    taps = SGLANG / "qwen3_moe.yaml"
    alone = places_alone(release, taps)
    for configs in ((taps, fault), (fault, taps)):
        together = places(check(release, *configs))
        assert [(place.tap, place.function) for place in together] == [(place.tap, place.function) for place in alone]


def check(release: str, *configs: Path) -> Checked:
    result = check_configs(configs, [sglang_sources(release)])
    assert result.ok, "\n".join(result.errors)
    return result


@functools.cache
def all_checked(release: str) -> Checked:
    """All configs at once: a server may be patched with any of them beside each other, but with one of passes."""
    return check(release, *sorted(path for path in SGLANG.glob("*.yaml") if path.stem != "embedding"))


@functools.cache
def places_alone(release: str, config: Path) -> tuple[Place, ...]:
    return tuple(places(check(release, config)))


@functools.cache
def all_places(release: str) -> tuple[Place, ...]:
    return tuple(places(all_checked(release)))


def beside(anchor: Anchor, place: Place, release: str) -> bool:
    text = anchor.text(release)
    assert text is not None
    if anchor.where == "before":
        return place.following.startswith(text)
    if anchor.where == "returned":
        return place.previous == text and place.following == "return __tensortap_return__"
    return place.previous.startswith(text)
