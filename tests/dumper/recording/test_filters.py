"""What is recorded: filters, and settings that cannot be read."""

from __future__ import annotations

from typing import Any

import pytest

from dumper.recording.recorder import Recorder
from dumper.settings import Settings, SettingsError
from tests.dumper.recording.conftest import Recording
from tests.dumper.rules.test_expressions import needs_re2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('name == "attn"', ["attn0", "attn1", "attn2"]),
        ("layer_id in [0, 2]", ["attn0", "mlp0", "attn2", "mlp2"]),
        ('layer_id < 2 and name.startswith("m")', ["mlp0", "mlp1"]),
        pytest.param('search("^a", name) and not layer_id % 2', ["attn0", "attn2"], marks=needs_re2),
        ("rank == 1", []),
        ("step > 0", []),
        ("missing > 3", []),
        ("missing is None and layer_id == 1", ["attn1", "mlp1"]),
    ],
)
def test_filters(recording: Recording, text: str, wanted: list[str]) -> None:
    recorder = recording.start(filter=text)
    for layer in range(3):
        for name in ("attn", "mlp"):
            recorder.dump(name, 1, layer_id=layer)
    recorder.close()
    recorder.configure(filter=None, run="run")
    found = [f"{r.name}{r.tags['layer_id']}" for r in recording.read().records] if wanted else []
    assert found == wanted


def test_a_filter_over_steps(recording: Recording) -> None:
    recorder = recording.start(filter="step % 2")
    for number in range(4):
        recorder.step()
        recorder.dump("x", number)
    assert [record.value for record in recording.read().records] == [1, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter": "layer_id = 3"}, "invalid syntax"),
        ({"filter": "__import__('os').system('x')"}, "__import__"),
        ({"filter": "search('(', name)"}, "regular expression"),
        ({"filter": "().__class__"}, "__class__"),
        ({"level": "sample(rows=0)"}, "sample"),
        ({"level": "full if layer_id ="}, "invalid syntax"),
        ({"steps": "9-3"}, "9-3"),
        ({"enabled": True}, "did you mean enable"),
        ({"memory_budget": "much"}, "'much'"),
        ({"when_full": "explode"}, "wait, drop"),
    ],
)
def test_bad_settings_are_refused_with_the_part_that_is_wrong(settings: dict[str, Any], message: str) -> None:
    recorder = Recorder(Settings())
    with pytest.raises(SettingsError, match=r"setting|did you mean") as caught:
        recorder.configure(**settings)
    assert message in str(caught.value)


def test_a_bad_variable_is_said_and_ignored() -> None:
    settings, (error,) = Settings.from_environment(
        {"TENSORTAP_ENABLE": "1", "TENSORTAP_COMPRESSION": "zip", "TENSORTAP_RUN": "mine"}
    )
    assert (settings.enable, settings.compression, settings.run) == (True, None, "mine")
    assert str(error).startswith("TENSORTAP_COMPRESSION")


@pytest.mark.parametrize(
    ("variable", "text"), [("FILTER", "layer_id in ["), ("LEVEL", "stat"), ("STEPS", "ten"), ("ON_NAN", "x")]
)
def test_a_variable_that_would_have_recorded_less_does_not_record_everything(variable: str, text: str) -> None:
    settings, (error,) = Settings.from_environment({"TENSORTAP_ENABLE": "1", f"TENSORTAP_{variable}": text})
    assert not settings.enable
    assert settings.controlled
    assert str(error).startswith(f"TENSORTAP_{variable}")
    assert "nothing is recorded" in str(error)
