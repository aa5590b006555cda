"""Which channels of an ONNX graph go together; what is removed changes nothing else."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from compressor.pruning.onnx_groups import groups, masked, removed
from compressor.pruning.onnx_trace import join_constants, own_constants, trace
from compressor.pruning.onnx_units import Label
from exporters._onnx_graph import normalise
from runtimes.errors import UsageError
from tests import models
from tests.net import Net

SHAPE = ["batch", 3, 8, 8]


def seen(model: ModelProto) -> dict[str, tuple[int, ...]]:
    probe = ModelProto.FromString(model.SerializeToString())
    known = {value.name for value in probe.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name not in known:
                probe.graph.output.append(onnx.ValueInfoProto(name=name))
    feeds = models.feeds(model, batch=2)
    made = {**feeds, **models.run(probe, feeds)}
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return {**weights, **{name: array.shape for name, array in made.items()}}


def traced(model: ModelProto, keep: tuple[str, ...] = ()):
    model, _ = normalise(model)
    copies = own_constants(model)
    found = trace(model, seen(model))
    usable, refused = groups(found, keep)
    return model, found, usable, {r.where: r.why for r in refused}, copies


def tied(model: ModelProto) -> list[set[str]]:
    _, _, usable, _, _ = traced(model)
    return [set(group.channels.producers) for group in usable]


def image_net(build: Callable[[Net], str], seed: int = 0, opset: int = 21) -> ModelProto:
    net = Net(seed)
    return net.model({"image": SHAPE}, {"out": (build(net), ["batch", 5])}, opset=opset)


def plain(net: Net, x: str, name: str, out: int, ins: int, **more) -> str:
    return net.op(
        "Conv", x, net.weight(f"{name}.w", out, ins, 3, 3), name=name, pads=[1] * 4, **more
    )


def head(net: Net, x: str, width: int) -> str:
    x = net.op("Flatten", net.op("GlobalAveragePool", x, name="pool"), name="flatten")
    weight = net.weight("head.w", 5, width)
    return net.op("Gemm", x, weight, net.constant("head.b", np.ones(5)), name="head", transB=1)


def residual(net: Net) -> str:
    x = net.op("Relu", plain(net, "image", "stem", 8, 3), name="relu")
    y = net.op("Relu", plain(net, x, "a", 12, 8), name="relu_a")
    return head(net, net.op("Add", plain(net, y, "b", 8, 12), x, name="add"), 8)


def joined(net: Net) -> str:
    a, b = plain(net, "image", "a", 6, 3), plain(net, "image", "b", 4, 3)
    x = net.op("Concat", a, b, "image", name="cat", axis=1)
    return head(net, plain(net, x, "c", 8, 13), 8)


def joined_and_added(net: Net) -> str:
    a, b = plain(net, "image", "a", 6, 3), plain(net, "image", "b", 4, 3)
    c = plain(net, "image", "c", 10, 3)
    return head(net, net.op("Add", net.op("Concat", a, b, name="cat", axis=1), c, name="add"), 10)


def depthwise(net: Net) -> str:
    x = plain(net, "image", "a", 8, 3)
    x = net.op("Conv", x, net.weight("d.w", 16, 1, 3, 3), name="d", pads=[1] * 4, group=8)
    return head(net, x, 16)


def grouped(net: Net) -> str:
    x = plain(net, "image", "a", 8, 3)
    x = net.op("Conv", x, net.weight("g.w", 12, 4, 3, 3), name="g", pads=[1] * 4, group=2)
    return head(net, x, 12)


def flattened(net: Net) -> str:
    x = net.op("PRelu", plain(net, "image", "a", 8, 3), net.weight("slope", 8, 1, 1), name="prelu")
    x = net.op("MaxPool", x, name="maxpool", kernel_shape=[4, 4], strides=[4, 4])
    x = net.op("Reshape", x, net.constant("to", [-1, 32], np.int64), name="reshape")
    x = net.op("MatMul", x, net.weight("fc.w", 32, 5), name="fc")
    return net.op("Add", x, net.constant("fc.b", np.ones(5)), name="bias")


def gated(net: Net) -> str:
    x = net.conv("image", "a", (8, 3, 3, 3))
    s = net.op("ReduceMean", x, net.constant("axes", [2, 3], np.int64), name="mean")
    s = net.op("Conv", s, net.weight("r.w", 4, 8, 1, 1), name="r")
    s = net.op("Conv", net.op("Relu", s, name="rr"), net.weight("e.w", 8, 4, 1, 1), name="e")
    return head(net, net.op("Mul", x, net.op("HardSigmoid", s, name="hs"), name="scale"), 8)


def split(net: Net) -> str:
    x = plain(net, "image", "a", 12, 3)
    net.op("Split", x, net.constant("sizes", [4, 8], np.int64), name="split", outputs=2, axis=1)
    y = net.op("Concat", plain(net, "split.out", "b", 8, 4), "split.out1", name="cat", axis=1)
    return head(net, y, 16)


def up_and_down(net: Net) -> str:
    x = plain(net, "image", "a", 8, 3, strides=[2, 2])
    up = net.op("ConvTranspose", x, net.weight("t.w", 8, 6, 2, 2), name="t", strides=[2, 2])
    sizes = net.constant("sizes", [2, 8, 8, 8], np.int64)
    pads = net.constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    near = net.op("Resize", x, "", "", sizes, name="resize", mode="nearest")
    x = net.op("Concat", up, near, name="cat", axis=1)
    return head(net, net.op("Pad", x, pads, name="pad"), 14)


def transposed(net: Net) -> str:
    x = net.op("Transpose", plain(net, "image", "a", 8, 3), name="last", perm=[0, 2, 3, 1])
    x = net.op("Relu", net.linear(x, "mlp", 8, 6), name="relu")
    x = net.op("Transpose", x, name="first", perm=[0, 3, 1, 2])
    return head(net, x, 6)


NETS = {
    f.__name__: f
    for f in (
        residual, joined, joined_and_added, depthwise, grouped, flattened, gated, split,
        up_and_down, transposed,
    )
}  # fmt: skip
TIED: Mapping[str, list[set[str]]] = {
    "residual": [{"stem", "b"}, {"a"}],
    "joined": [{"a"}, {"b"}, {"c"}],
    "joined_and_added": [{"a", "c"}, {"b", "c"}],
    "depthwise": [{"a"}],
    "grouped": [{"a"}, {"g"}],
    "flattened": [{"a"}],
    "gated": [{"a", "e"}, {"r"}],
    "split": [{"a"}, {"b"}],
    "up_and_down": [{"a"}, {"t"}],
    "transposed": [{"a"}, {"mlp"}],
}


@pytest.mark.parametrize("name", sorted(NETS))
def test_which_layers_are_tied(name):
    assert tied(image_net(NETS[name])) == TIED[name]


def without_a_third(model: ModelProto):
    model, found, usable, _, copies = traced(model)
    gone = {root for group in usable for root in group.roots[::3]}
    smaller = removed(model, found, gone)
    zeroed = masked(model, found, gone)
    join_constants(smaller, copies)
    return model, zeroed, smaller


@pytest.mark.parametrize("name", sorted(NETS))
def test_removing_channels_is_the_same_as_reading_none_of_them(name):
    model, zeroed, smaller = without_a_third(image_net(NETS[name]))
    onnx.checker.check_model(smaller, full_check=True)
    feeds = models.feeds(model, batch=2, seed=3)
    want, got = models.run(zeroed, feeds)["out"], models.run(smaller, feeds)["out"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert not np.allclose(want, models.run(model, feeds)["out"], rtol=1e-2)
    sizes = [sum(t.ByteSize() for t in m.graph.initializer) for m in (model, smaller)]
    assert sizes[1] < 0.9 * sizes[0]


@pytest.mark.parametrize("name", ["residual", "depthwise", "flattened", "gated"])
def test_channels_that_are_zero_can_go_without_a_trace(name):
    model, found, usable, _, _ = traced(image_net(NETS[name]))
    gone = {root for group in usable for root in group.roots[::3]}
    weights = {t.name: t for t in model.graph.initializer}
    for cut in found.cuts:
        if cut.role != "out" and not cut.tensor.endswith(("bn.bias", "bn.mean")):
            continue
        values = numpy_helper.to_array(weights[cut.tensor]).copy()
        lost = [int(r) in gone for r in found.units.roots(cut.ids)]
        np.moveaxis(values, cut.axis, 0)[lost] = 0
        weights[cut.tensor].CopyFrom(numpy_helper.from_array(values, cut.tensor))
    feeds = models.feeds(model, batch=2, seed=3)
    want, got = (
        models.run(model, feeds)["out"],
        models.run(removed(model, found, gone), feeds)["out"],
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [11, 17, 21])
def test_every_operator_set(opset):
    def build(net: Net) -> str:
        x = net.op("Relu", plain(net, "image", "a", 8, 3), name="relu")
        more = {"axes": [2, 3]} if opset < 18 else {}
        given = [] if opset < 18 else [net.constant("axes", [2, 3], np.int64)]
        x = net.op("ReduceMean", x, *given, name="mean", keepdims=0, **more)
        return net.op("MatMul", x, net.weight("fc.w", 8, 5), name="fc")

    model, zeroed, smaller = without_a_third(image_net(build, opset=opset))
    feeds = models.feeds(model, batch=2)
    want, got = models.run(zeroed, feeds)["out"], models.run(smaller, feeds)["out"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def unknown(net: Net) -> str:
    x = net.op("LRN", plain(net, "image", "a", 8, 3), name="lrn", size=3)
    return head(net, x, 8)


def heads(net: Net) -> str:
    x = plain(net, "image", "a", 8, 3)
    to = net.constant("to", [-1, 2, 4, 64], np.int64)
    x = net.op("Reshape", x, to, name="heads")
    x = net.op("ReduceMean", x, net.constant("axes", [1, 3], np.int64), name="mean", keepdims=0)
    return net.op("MatMul", x, net.weight("fc.w", 4, 5), name="fc")


def normed(net: Net) -> str:
    x = net.op("Relu", plain(net, "image", "a", 8, 3), name="relu")
    return head(net, net.op("Softmax", x, name="softmax", axis=1), 8)


def reversed_(net: Net) -> str:
    ends = [net.constant(n, [v], np.int64) for n, v in
            (("from", -1), ("to", -9), ("axes", 1), ("steps", -1))]  # fmt: skip
    return head(net, net.op("Slice", plain(net, "image", "a", 8, 3), *ends, name="turn"), 8)


def with_input(net: Net) -> str:
    x = plain(net, "image", "a", 3, 3)
    return head(net, net.op("Add", x, "image", name="add"), 3)


def computed(net: Net) -> str:
    x = plain(net, "image", "a", 8, 3)
    size = net.op("Shape", "image", name="shape", start=0, end=1)
    to = net.op("Concat", size, net.constant("rest", [512], np.int64), name="to", axis=0)
    x = net.op("Reshape", x, to, name="reshape")
    return net.op("MatMul", x, net.weight("fc.w", 512, 5), name="fc")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (unknown, "lrn: LRN is not followed"),
        (heads, "heads: Reshape splits them"),
        (normed, "softmax: Softmax mixes them"),
        (reversed_, "turn: Slice changes"),
        (with_input, "add: Add combines them with image, whose width is fixed"),
        (computed, "reshape: Reshape computes its shape"),
    ],
)
def test_what_is_left_alone_is_named_with_the_reason(build, reason):
    _, _, usable, refused, _ = traced(image_net(build))
    assert "a" not in [group.name for group in usable]
    assert reason in refused["a"]


def test_outputs_stay():
    _, _, _, refused, _ = traced(image_net(residual))
    assert refused["head"] == "out: the model's output"


def test_a_weight_read_in_two_ways_stays_whole():
    _, _, _, refused, _ = traced(models.shared_weight())
    assert "shared.weight has another reader" in refused["first"]


def test_a_weight_read_twice_alike_is_cut_once():
    def build(net: Net) -> str:
        x = net.op("Relu", plain(net, "image", "a", 8, 3), name="relu")
        shared = net.weight("s.w", 6, 8, 3, 3)
        y = net.op("Conv", x, shared, name="b", pads=[1] * 4)
        z = net.op("Conv", net.op("Neg", x, name="neg"), shared, name="c", pads=[1] * 4)
        return head(net, net.op("Max", y, z, name="max"), 6)

    assert tied(image_net(build)) == [{"a"}, {"b", "c"}]
    model, zeroed, smaller = without_a_third(image_net(build))
    feeds = models.feeds(model, batch=2)
    np.testing.assert_allclose(
        models.run(smaller, feeds)["out"], models.run(zeroed, feeds)["out"], rtol=1e-5, atol=1e-6
    )


def test_constants_shared_by_two_layers_get_copies_only_where_they_differ():
    def build(net: Net) -> str:
        bias = net.constant("bias", np.ones(8))
        x = net.op("Conv", "image", net.weight("a.w", 8, 3, 1, 1), bias, name="a")
        x = net.op("Conv", x, net.weight("b.w", 8, 8, 1, 1), bias, name="b")
        return head(net, x, 8)

    model, found, usable, _, copies = traced(image_net(build))
    assert list(copies.values()) == ["bias"]
    smaller = removed(model, found, set(usable[0].roots[:4]))
    join_constants(smaller, copies)
    assert [t.dims[0] for t in smaller.graph.initializer if t.name.startswith("bias")] == [4, 8]
    join_constants(model, copies)
    assert [t.name for t in model.graph.initializer if t.name.startswith("bias")] == ["bias"]


def test_kept_layers_stay_and_globs_must_match():
    _, _, usable, refused, _ = traced(image_net(joined), keep=("b",))
    assert [group.name for group in usable] == ["a", "c"]
    assert refused["b"] == "kept: b"
    with pytest.raises(UsageError, match="did you mean head"):
        traced(image_net(joined), keep=("hed",))


@pytest.mark.parametrize(
    ("before", "after", "axis", "found"),
    [
        ((2, 3, 1, 1), (2, 3), 1, (1, [0, 1, 2])),
        ((2, 3, 2), (2, 6), 1, (1, [0, 0, 1, 1, 2, 2])),
        ((2, 2, 3), (2, 6), 2, (1, [0, 1, 2, 0, 1, 2])),
        ((2, 6), (2, 2, 3), 1, None),
        ((2, 3, 4), (6, 4), 1, None),
        ((2, 3), (2, 1, 3, 1), 1, (2, [0, 1, 2])),
    ],
)
def test_where_channels_stand_after_a_reshape(before, after, axis, found):
    from compressor.pruning.onnx_rules import regrouped

    made = regrouped(before, after, Label(axis, np.arange(before[axis])))
    assert (made and (made.axis, made.ids.tolist())) == found
