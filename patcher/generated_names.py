"""Names that the rewritten source uses and that cannot collide with a target's own (docs/contracts.md, contract 1)."""

from __future__ import annotations

DUMPER = "__tensortap_dumper__"
TAPS = "__tensortap_taps__"
WRAP_FUNCTION = "__tensortap_wrap__"
RETURN_VARIABLE = "__tensortap_return__"
VALUE_VARIABLE = "__tensortap_value__"
DUMPER_NAME = "dumper"
"""What inserted code calls the dumper, without importing it."""
