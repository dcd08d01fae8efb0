"""Whether two recordings agree, and where error was introduced: from rows of taps to a Diagnosis.

    rows ─▶ profile (numbers of one tap) ─▶ diagnose (all profiles and the graph of taps) ─▶ Diagnosis

Pure functions over numpy arrays and frozen structs; nothing here reads files (but calibrations) or knows runs.
"""

from comparator.diagnosis.calibration import (
    Calibration,
    CalibrationError,
    calibrate,
    read_calibration,
    write_calibration,
)
from comparator.diagnosis.encoded import profile
from comparator.diagnosis.floors import Floor, Operation, floor_for
from comparator.diagnosis.reference_run import ReferenceDiagnosis, ReferenceTap, diagnose_reference
from comparator.diagnosis.strengths import Test
from comparator.diagnosis.tap_graph import GraphError, TapDeclaration, TapGraph, TapNode, build_graph
from comparator.diagnosis.tap_profile import TapProfile
from comparator.diagnosis.tap_rows import Extent, RowLabels, Selection, SideRows, TapKey, TapRows, label_rows
from comparator.diagnosis.tokens import ChosenTokens, PartedText, Parting
from comparator.diagnosis.verdict import Diagnosis, Judgement, Options, diagnose
from comparator.diagnosis.words import describe

__all__ = [
    "Calibration",
    "CalibrationError",
    "ChosenTokens",
    "Diagnosis",
    "Extent",
    "Floor",
    "GraphError",
    "Judgement",
    "Operation",
    "Options",
    "PartedText",
    "Parting",
    "ReferenceDiagnosis",
    "ReferenceTap",
    "RowLabels",
    "Selection",
    "SideRows",
    "TapDeclaration",
    "TapGraph",
    "TapKey",
    "TapNode",
    "TapProfile",
    "TapRows",
    "Test",
    "build_graph",
    "calibrate",
    "describe",
    "diagnose",
    "diagnose_reference",
    "floor_for",
    "label_rows",
    "profile",
    "read_calibration",
    "write_calibration",
]
