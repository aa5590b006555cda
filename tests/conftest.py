"""What holds for every test."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator

import pytest

# One thread a process, those it starts included: the models of tests are small, and where another
# process has the second core, two threads of torch wait for each other at every operator.
os.environ.setdefault("OMP_NUM_THREADS", "1")


_modules = [0]  # that were imported when garbage was last looked for here


@pytest.fixture(autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """Steps collect garbage, and half of their time in tests went into looking at the libraries."""
    yield
    if len(sys.modules) > _modules[0]:
        gc.collect()
        gc.freeze()
        _modules[0] = len(sys.modules)
