"""Threads of steps and scoring: never more than the process may use."""

import os

import pytest

from compressor.session import step_threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_one_usable_cpu_means_one_thread():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert step_threads() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert step_threads() == min(2, len(before))
