"""The fixture that ships, also where the package is not installed with its entry points."""

from pytest_tensortap import tensortap_record

__all__ = ["tensortap_record"]
