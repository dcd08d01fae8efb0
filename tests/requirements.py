"""What some tests need beyond the environment; a test that lacks it is skipped with the reason."""

from __future__ import annotations

import pytest

from testbed.vllm_server import PYTHON

needs_vllm = pytest.mark.skipif(not PYTHON.exists(), reason="there is no .venv-vllm: run `make venv-vllm`")
