"""The log of ``tensortap``; and trouble, said once: a full disk must not fill the log as well."""

from __future__ import annotations

from tensortap.printable import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging


def log() -> logging.Logger:
    """The logger ``tensortap``: whoever logs asks for it anew, since a framework's ``dictConfig`` switches off all
    loggers that there are and that it does not name."""
    # Imported late: logging would double what ``import dumper`` costs every patched process.
    import logging

    logger = logging.getLogger("tensortap")
    logger.disabled = False
    return logger


class LogOnce:
    """Lines in the log of ``tensortap``, one for each kind of trouble."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def say(self, message: str, *, key: str | None = None, level: str = "error") -> None:
        """Log ``message`` at a level of ``logging`` (``error``, ``warning``, ``info``), unless something was said under
        this key (the message itself, unless given) before."""
        key = key or message
        if key not in self._keys:
            self._keys.add(key)
            getattr(log(), level)("tensortap: %s", printable(message))
