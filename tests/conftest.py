"""What holds for every test."""

from __future__ import annotations

import os

# One thread a process, those it starts included: the models of tests are small, and where another
# process has the second core, two threads of torch wait for each other at every operator.
os.environ.setdefault("OMP_NUM_THREADS", "1")
