"""The zoo's own files: what each model declares, exports of some, folders, splits, metrics."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the torch extra")

from examples.zoo import MODELS, data, folder, load, metrics, table
from examples.zoo.about import About, splits

TORCH = [name for name in MODELS if not hasattr(load(name), "given")]
# both exporters, all dtypes, all kinds of free dimension
EXPORTED = ["mobilenet", "yolo", "rnn", "bert", "gcn", "stream", "gpt_cache"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_declares_what_it_must(name):
    from compressor.metrics import load_metric

    module = load(name)
    about = module.ABOUT
    assert about.kind
    assert about.architecture
    assert about.source
    assert about.licence
    assert len(about.outputs) == len(set(about.outputs))
    assert about.export in {"dynamo", "torchscript"}
    metric = about.metric if isinstance(about.metric, str) else about.metric["name"]
    assert load_metric(about.metric, table.HERE).name == metric.rpartition(":")[2]
    wanted = ["calibration", "selection", "evaluation"]
    wanted += ["build", "train"] if name in TORCH else ["given"]
    assert all(callable(getattr(module, w)) for w in wanted)
    for source, result in (about.state or {}).items():
        assert source in about.inputs
        assert result in about.outputs


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_an_untrained_model_exports_and_computes_what_torch_does(name, tmp_path):
    import onnxruntime
    import torch

    module = load(name)
    torch.manual_seed(0)
    model = module.build().eval()
    folder.export(model, module.ABOUT, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    shapes = module.ABOUT.shapes()
    assert [i.name for i in session.get_inputs()] == list(shapes)
    assert [o.name for o in session.get_outputs()] == list(module.ABOUT.outputs)
    sizes = {"batch": 5, "steps": 9, "past": 0}  # not those it was traced with
    feeds = {
        n: torch.ones([sizes.get(d, d) for d in shape], dtype=getattr(torch, dtype))
        for n, (shape, dtype) in shapes.items()
    }
    with torch.no_grad():
        want = model(*feeds.values())
    found = session.run(None, {n: t.numpy() for n, t in feeds.items()})
    for one, other in zip(want if isinstance(want, tuple) else (want,), found, strict=True):
        np.testing.assert_allclose(other, one.numpy(), rtol=1e-3, atol=1e-4)


def test_recurrent_layers_become_single_nodes(tmp_path):
    import onnx

    module = load("rnn")
    folder.export(module.build().eval(), module.ABOUT, tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("RNN") == 1


def test_streaming_a_sequence_step_by_step_gives_what_training_sees():
    import torch

    torch.manual_seed(0)
    model = load("stream").build().eval()
    frames = torch.rand(2, 5, 1, 7, 28)
    state, said = torch.zeros(2, 2, 192), []
    with torch.no_grad():
        for step in range(5):
            logits, state = model(frames[:, step], state)
            said.append(logits)
        torch.testing.assert_close(torch.stack(said, 1), model.over(frames))


def test_a_decoder_with_a_cache_says_what_it_says_without():
    import torch

    torch.manual_seed(0)
    whole, steps = load("gpt").build().eval(), load("gpt_cache").build().eval()
    steps.load_state_dict(whole.state_dict())
    tokens, past, said = torch.randint(0, 2048, (2, 6)), torch.zeros(2, 8, 4, 0, 40), []
    with torch.no_grad():
        for step in range(6):
            logits, past = steps(tokens[:, step], past)
            said.append(logits)
        want = whole(tokens)
    torch.testing.assert_close(torch.stack(said, 1), want, rtol=1e-4, atol=1e-4)


# ── folders ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tiny(tmp_path):
    """A model file of the shape the zoo's have, that counts how often it trains."""
    import torch

    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4)).astype(np.float32)
    whole = {"features": x, "labels": (x.sum(1) > 0).astype(np.int64)}
    module = ModuleType("tiny")
    module.__file__ = str(tmp_path / "tiny.py")
    (tmp_path / "tiny.py").write_text("# version 1\n")
    module.ABOUT = About(
        "mlp", "one layer", "made up", "none", "top1", {"features": ["batch", 4]}, ["logits"]
    )
    module.trained = 0

    def train(model):
        module.trained += 1
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
            model.bias.zero_()

    def arrays():
        parts = np.split(np.arange(90), 3)
        names = ("calibration", "selection", "evaluation")
        return {n: {k: v[p] for k, v in whole.items()} for n, p in zip(names, parts, strict=True)}

    module.build, module.train = lambda: torch.nn.Linear(4, 2), train
    _, module.calibration, module.selection, module.evaluation = splits(arrays)
    return module


def test_a_folder_holds_model_data_and_card_and_is_made_once(tiny, tmp_path):
    card = folder.make("tiny", tiny, tmp_path / "zoo")
    place = tmp_path / "zoo" / "tiny"
    assert {p.name for p in place.iterdir()} == {
        "model.onnx", "weights.safetensors", "calibration.npz", "selection.npz",
        "evaluation.npz", "card.json",
    }  # fmt: skip
    assert json.loads((place / "card.json").read_text()) == card
    assert (card["score"], card["n_evaluation"]) == (1.0, 30)
    assert card["bytes"] == (place / "model.onnx").stat().st_size
    assert folder.make("tiny", tiny, tmp_path / "zoo") == card
    assert tiny.trained == 1


def test_changed_code_makes_a_folder_again_unless_weights_are_kept(tiny, tmp_path):
    from pathlib import Path

    first = folder.make("tiny", tiny, tmp_path / "zoo")
    Path(tiny.__file__).write_text("# version 2\n")
    kept = folder.make("tiny", tiny, tmp_path / "zoo", keep=True)
    assert (tiny.trained, kept["score"]) == (1, 1.0)
    assert kept["digest"] != first["digest"]
    Path(tiny.__file__).write_text("# version 3\n")
    folder.make("tiny", tiny, tmp_path / "zoo")
    assert tiny.trained == 2
    assert [p.name for p in (tmp_path / "zoo").iterdir()] == ["tiny"]


# ── data and metrics ─────────────────────────────────────────────────────────────────────────────


def test_splits_share_no_sample():
    whole = {"x": np.arange(5000), "labels": np.arange(5000)}
    test = {"x": np.array([7, 5001, 4999, 5002]), "labels": np.arange(4)}
    roles = data.split(whole, test)
    training = [set(roles[r]["x"]) for r in ("training", "calibration", "selection")]
    assert set.union(*training) == set(range(5000))
    assert sum(map(len, training)) == 5000
    assert roles["evaluation"]["x"].tolist() == [5001, 5002]  # those that nobody has seen
    assert roles["evaluation"]["labels"].tolist() == [1, 3]


def test_words_are_numbered_by_frequency_and_padded():
    assert data.words("GNU C++ 12.1") == ["gnu", "c", "+", "+", "1", "2", ".", "1"]
    vocab = {"gnu": 2, "c": 3}
    found = data.encode("GNU C++", vocab, 6)
    assert found.tolist() == [2, 3, data.UNKNOWN, data.UNKNOWN, data.PAD, data.PAD]


def test_captcha_text_drops_blanks_and_repeats():
    signs = metrics.CAPTCHA
    path = "__AA_A77__Z_________"  # 20 steps, the last of which the package does not read
    scores = np.zeros((1, 20, 37), np.float32)
    for step, sign in enumerate(path):
        scores[0, step, signs.index(sign)] = 1
    assert metrics.captcha_text({"logits": scores}) == ["AA7Z"]
    value, each = metrics.captcha_signs({"logits": scores}, np.array(["AA72"]))
    assert (value, each) == (0.75, [0.75])


def test_next_token_is_the_share_of_right_positions():
    logits = np.eye(3, dtype=np.float32)[None, [0, 1, 2, 2]]
    value, each = metrics.next_token({"logits": logits}, np.array([[0, 1, 2, 0]]))
    assert (value, each) == (0.75, [0.75])


def test_the_readme_says_what_the_cards_say():
    cards = json.loads(table.CARDS.read_text())
    assert [c["name"] for c in cards] == [n for n in MODELS if n in {c["name"] for c in cards}]
    text = table.README.read_text()
    assert table.with_table(text, cards) == text
