"""Which integers a target wants on which CPU: the flags decide, those of this machine in a plan."""

from __future__ import annotations

import pytest

from compressor import here
from compressor.steps import load_target
from exporters import to_openvino
from exporters._schemes import ONNXRUNTIME, ONNXRUNTIME_X86, OPENVINO, OPENVINO_X86


@pytest.mark.parametrize(
    ("flags", "scheme"),
    [
        ({"sse4_1", "avx2", "avx512f", "avx512bw"}, OPENVINO_X86),
        ({"avx2", "avx_vnni"}, OPENVINO),
        ({"avx512f", "avx512_vnni"}, OPENVINO),
        ({"asimd", "asimddp"}, OPENVINO),
        ((), OPENVINO),
    ],
)
def test_openvinos_scheme_follows_the_cpus_flags(flags, scheme):
    assert to_openvino.scheme_for(flags) == scheme


@pytest.mark.parametrize(
    ("isa", "schemes"),
    [
        (["avx2"], {"onnxruntime": ONNXRUNTIME_X86, "openvino": OPENVINO_X86}),
        (["avx2", "avx_vnni"], {"onnxruntime": ONNXRUNTIME, "openvino": OPENVINO}),
    ],
)
def test_a_plan_takes_the_scheme_of_its_machine(isa, schemes, monkeypatch):
    monkeypatch.setattr(here, "facts", lambda: {"isa": isa})
    found = {name: here.scheme_here(load_target(name)) for name in schemes}
    assert found == schemes
    assert OPENVINO_X86.weight_limit == 63
