"""Plans: formats chained, missing data a reason to skip a rung, every question with a gate."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.gates import parse_gate
from compressor.plan import Plan, complete_gates, make_plan
from compressor.recipe import load_recipe
from compressor.schema import Problems
from compressor.shapes import resolve_shapes
from exporters import to_tensorrt_rtx
from exporters.base import Context
from runtimes.errors import UsageError
from runtimes.types import Artifact, TensorSpec

INPUTS = (TensorSpec("image", "float32", ("batch", 1, 28, 28)),)


def planned(
    recipe: dict,
    *,
    source: Artifact | None = None,
    source_format: str = "onnx",
    roles: frozenset[str] = frozenset({"calibration"}),
) -> Plan:
    return make_plan(
        load_recipe(recipe),
        source=source,
        source_format=source_format,
        inputs=INPUTS,
        roles=roles,
        context=Context(),
    )


def test_a_module_gets_the_missing_export() -> None:
    (target,) = planned({"targets": {"onnxruntime": {}}}, source_format="module").targets
    assert [s.name for s in target.twins[0].steps] == ["to_onnx", "to_onnxruntime"]


def test_an_onnx_source_needs_none() -> None:
    recipe = {"targets": {"onnxruntime": {"steps": ["to_onnx", "to_onnxruntime"]}}}
    (target,) = planned(recipe).targets
    assert [s.name for s in target.rungs[0].steps] == ["to_onnxruntime"]


def test_rungs_that_lack_data_are_skipped_with_the_reason() -> None:
    (target,) = planned({"targets": {"onnxruntime": {}}}, roles=frozenset()).targets
    skipped = {r.name: r.skipped for r in target.rungs}
    assert skipped["int8"] == "needs calibration data"
    assert skipped["w8"] == ""


def test_an_explicit_list_that_lacks_data_is_a_problem() -> None:
    recipe = {"targets": {"onnxruntime": {"steps": ["to_onnxruntime", "quantize_static"]}}}
    with pytest.raises(Problems, match="needs calibration data") as caught:
        planned(recipe, roles=frozenset())
    assert "add data.calibration" in str(caught.value)


def test_the_twins_are_built_as_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what an answer must reach, which is the candidate's own."""
    monkeypatch.setattr(to_tensorrt_rtx, "tools", dict)
    built = {"workspace_bytes": 1 << 20, "version_compatible": True, "least_db": 15.0}
    cards = {"to_tensorrt_rtx": {"compute_capabilities": [89]}}
    steps = ["to_onnxruntime", {"to_tensorrt": built}, cards]
    (target,) = planned({"targets": {"tensorrt_rtx": {"steps": steps}}}, roles=frozenset()).targets
    for twin in target.twins:
        *_, bundle, plan = (step.options for step in twin.steps)
        assert (bundle.workspace_bytes, bundle.version_compatible) == (1 << 20, True)
        assert (bundle.least_db, bundle.proxy) == (None, ())
        assert plan.compute_capabilities == (89,)


def test_an_exported_program_cannot_be_trained() -> None:
    recipe = {"steps": ["recover"], "targets": {"onnxruntime": {}}}
    with pytest.raises(Problems, match="give the module"):
        planned(recipe, source_format="exported")


def test_a_step_cannot_time_on_a_target_that_the_recipe_has_not() -> None:
    def recipe(on: str) -> dict:
        step = {"prune_channels": {"keep": {"latency": "50%"}, "on": on}}
        return {"steps": [step], "targets": {"onnxruntime": {}}}

    with pytest.raises(Problems) as caught:
        planned(recipe("openvino"), source_format="module")
    (problem,) = caught.value.problems
    assert problem.where == "steps[0] prune_channels.on"
    told = str(caught.value)
    for text in ("no target 'openvino'", "one of onnxruntime", "add `openvino: {}` to `targets`"):
        assert text in told
    assert planned(recipe("onnxruntime"), source_format="module").shared


def test_an_exported_program_is_pruned_as_a_graph() -> None:
    recipe = {
        "steps": [{"prune_channels": {"keep": {"macs": "50%"}}}],
        "targets": {"onnxruntime": {}},
    }
    found = planned(recipe, source_format="exported")
    assert [s.name for s in found.shared] == ["to_onnx", "prune_channels"]


def test_a_list_that_ends_in_another_format_is_a_problem() -> None:
    pytest.importorskip("openvino", reason="the target must be there to be named")
    with pytest.raises(Problems, match="end it with to_openvino"):
        planned({"targets": {"openvino": {"steps": ["to_onnxruntime"]}}})


def test_problems_of_all_targets_come_at_once() -> None:
    recipe = {"targets": {"nowhere": {}, "onnxruntime": {"gates": ["speed>=1"]}}}
    with pytest.raises(Problems) as caught:
        planned(recipe)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ([], {"relative_drop<=1%", "size_reduction>=0%", "speedup>=0.97"}),
        (["accuracy_drop<=2%", "speedup>=2"], {"size_reduction>=0%"}),
        (["p50<=5ms", "size<=3MB"], {"relative_drop<=1%", "size_reduction>=0%", "speedup>=0.97"}),
        (["speedup>=3 over twin"], {"relative_drop<=1%", "size_reduction>=0%", "speedup>=0.97"}),
    ],
)
def test_every_question_has_a_gate(given: list[str], added: set[str]) -> None:
    gates = tuple(map(parse_gate, given))
    assert {str(g) for g in complete_gates(gates)} - set(given) == added


def test_the_default_size_gate_reads_the_package_where_nothing_else_shrinks() -> None:
    gates = {str(g) for g in complete_gates((), package=True)}
    assert gates == {"relative_drop<=1%", "size_reduction>=0% of the package", "speedup>=0.97"}
    named = complete_gates((parse_gate("size_reduction>=50%"),), package=True)
    assert "size_reduction>=50%" in {str(g) for g in named}  # what the user wrote stays
    assert not any(g.of == "package" for g in named)


def test_without_labels_the_outputs_are_compared() -> None:
    assert {"agreement>=97%", "sqnr>=15dB"} <= {str(g) for g in complete_gates((), labelled=False)}


@pytest.mark.parametrize("value", ["1..8@4", ["1..8@4", 1, 28, 28], {"batch": "1..8@4"}])
def test_three_spellings_of_a_shape(value: object) -> None:
    assert resolve_shapes({"image": value}, INPUTS, "x") == {"image": {"batch": (1, 4, 8)}}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"imgae": 1}, "no such input"),
        ({"image": [1, 1]}, "wrong number of dimensions"),
        ({"image": {"seq": 1}}, "no free dimension 'seq'"),
    ],
)
def test_shapes_that_do_not_fit(raw: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve_shapes(raw, INPUTS, "targets.x")


def test_options_are_held_against_the_format_that_a_step_gets(tmp_path: Path) -> None:
    """A module is a graph by then where an export comes first."""
    module = Artifact(tmp_path, "module", "module.json", INPUTS, INPUTS, {}, {})
    prune = {"prune_channels": {"saliency": "reconstruction"}}
    targets = {"onnxruntime": {}}
    with pytest.raises(Problems, match=r"steps\[0\].*saliency.*ONNX graphs"):
        planned({"steps": [prune], "targets": targets}, source=module, source_format="module")
    after = {"steps": ["to_onnx", prune], "targets": targets}
    made = planned(after, source=module, source_format="module")
    assert [s.name for s in made.shared] == ["to_onnx", "prune_channels"]
