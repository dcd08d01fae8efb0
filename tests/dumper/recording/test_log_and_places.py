"""Where nothing can be recorded to, and that what is said is seen."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import dumper as dumper_package
from dumper.adapters import read_batch
from dumper.control.http import serve
from dumper.recording.plans import Choice
from dumper.recording.recorder import Recorder
from dumper.settings import Settings, SettingsError
from dumper.values.source import Source


@pytest.mark.parametrize(
    "address", ["s3://mykey:mysecret@bucket/runs", "s3:/bucket/runs", "gs://bucket", "file:///tmp"]
)
def test_an_address_is_no_place_to_record_to(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder of that name is made, nor is the run written to the usual one."""
    monkeypatch.chdir(tmp_path)
    settings, (error,) = Settings.from_environment({"TENSORTAP_ENABLE": "1", "TENSORTAP_DIR": address})
    assert not settings.enable
    assert not settings.controlled
    assert str(error).startswith("TENSORTAP_DIR: setting dir: ")
    assert "is an address, and a run is recorded to a folder of this machine" in str(error)
    assert "nothing is recorded" in str(error)
    assert "secret" not in str(error)
    recorder = Recorder(settings)
    recorder.dump("x", 1)
    with pytest.raises(SettingsError, match="is an address"):
        recorder.configure(enable=True, dir=address)
    recorder.close()
    assert not list(tmp_path.iterdir())


def test_a_framework_that_configures_logging_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """``logging.config.dictConfig`` disables the loggers that there are and that it does not name."""
    for say in (
        lambda: read_batch(type("Unheard", (), {})()),
        lambda: serve(Path(), 0, token=None),
        lambda: Choice(Settings(), 0).level(Source.of("x", level="all"), (), None),
    ):
        logging.getLogger("tensortap").disabled = True
        caplog.clear()
        say()
        assert caplog.messages


def test_the_log_is_asked_for_where_it_is_used() -> None:
    folder = Path(dumper_package.__file__).parent
    named = {file.name for file in folder.rglob("*.py") if "getLogger(" in file.read_text()}
    assert named == {"log_once.py"}
