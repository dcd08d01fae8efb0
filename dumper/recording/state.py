"""What a recorder says of itself."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dumper.recording.session import Session
    from dumper.settings import Settings

CHANGEABLE = (
    "enable",
    "filter",
    "level",
    "steps",
    "enable_value",
    "enable_grad",
    "enable_model_value",
    "enable_model_grad",
    "dir",
    "run",
)
"""Settings that can be changed while a run is recorded."""


def plain_state(settings: Settings, step: int, session: Session | None) -> dict[str, Any]:
    """Plain values for ``python -m dumper ctl RUN status``."""
    counts = session.counts() if session is not None else {}
    return {
        "settings": {key: getattr(settings, key) for key in CHANGEABLE},
        "step": step,
        "records": counts.get("written", 0),
        "losses": sum(count for name, count in counts.items() if name.startswith("lost")),
        **counts,
    }


def in_one_line(settings: Settings | None, step: int, session: Session | None) -> str:
    """Whether and where something is recorded; ``settings`` None: nothing was ever to be."""
    if settings is None or (session is None and not settings.enable):
        return "<dumper: off; TENSORTAP_ENABLE=1 or dumper.configure(enable=True) starts it>"
    state = plain_state(settings, step, session)
    counted = f"step {state['step']}, {state['records']} records, {state['losses']} lost"
    where = f"recording into {settings.run_path}," if settings.enable else f"off; {settings.run_path} holds"
    return f"<dumper: {where} {counted}>"


def state_for_sglang(state: dict[str, Any]) -> dict[str, Any]:
    """The state as SGLang's dumper says it: ``config``, ``step``, ``dump_index``; the rest beside them."""
    rest = {key: value for key, value in state.items() if key != "settings"}
    settings = dict(state.get("settings", {}))
    if "run" in settings:
        settings["exp_name"] = settings["run"]
    # Counted when they are handed over: what was written a moment ago is no concern of those who ask.
    return {"config": settings, "dump_index": state.get("submitted", 0), **rest}


def next_run(run: str) -> str:
    """The name of the run after this one: ``run-2`` after ``run``."""
    name, _, number = run.rpartition("-")
    # Not the last part of a time of day.
    if name and number.isdecimal() and len(number) < 3 and int(number) > 1:
        return f"{name}-{int(number) + 1}"
    return f"{run}-2"
