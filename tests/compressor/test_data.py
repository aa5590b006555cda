"""Data in every form, and what is said of data that does not fit."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.data import DataSet, check_disjoint, open_data
from runtimes.errors import UsageError
from runtimes.types import TensorSpec

IMAGE = (TensorSpec("image", "float32", ("batch", 1, 4, 4)),)
TOKENS = (
    TensorSpec("ids", "int64", ("batch", "time")),
    TensorSpec("mask", "int64", ("batch", "time")),
)
HERE = Path()


def images(n: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"image": rng.random((n, 1, 4, 4), dtype=np.float32), "labels": np.arange(n) % 3}


def opened(spec: Any, role: str = "calibration", inputs: Any = IMAGE, base: Path = HERE) -> DataSet:
    return open_data(spec, role, inputs, base)


def refused(spec: Any, *fragments: str, inputs: Any = IMAGE, base: Path = HERE) -> None:
    with pytest.raises(UsageError) as caught:
        opened(spec, inputs=inputs, base=base)
    for fragment in fragments:
        assert fragment in str(caught.value)


# ── forms ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    arrays = images()
    save(tmp_path / "calib.npz", **arrays)
    data = opened("calib.npz", base=tmp_path)
    assert len(data) == 6
    np.testing.assert_array_equal(data.feeds([4, 1])["image"], arrays["image"][[4, 1]])
    np.testing.assert_array_equal(data.labels, arrays["labels"])
    assert data.description == "calib.npz: 6 samples of image float32[1, 4, 4], labelled"


def test_npz_is_memory_mapped_where_it_can_be(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **images())
    data = opened("a.npz", base=tmp_path)
    assert isinstance(data.reader.arrays["image"].base, np.memmap)  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="Linux tells resident pages")
def test_pages_of_a_mapped_file_do_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image=np.ones((2000, 1, 4, 4), np.float32))
    data = opened("a.npz", base=tmp_path)
    assert data.feeds(range(2000))["image"].sum() == 32000
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split(str(path))[1:]
    assert maps
    assert all(re.search(r"Rss: +0 kB", part) for part in maps)


def test_batches_are_in_order_and_the_last_is_smaller() -> None:
    data = opened(images(7))
    found = [(indices, feeds["image"].shape[0]) for indices, feeds in data.batches(3)]
    assert found == [([0, 1, 2], 3), ([3, 4, 5], 3), ([6], 1)]
    assert [i for i, _ in data.batches(2, [5, 3, 1])] == [[5, 3], [1]]


def test_npy_and_a_bare_array(tmp_path: Path) -> None:
    arrays = images()
    np.save(tmp_path / "x.npy", arrays["image"])
    assert opened("x.npy", base=tmp_path).fingerprint == opened(arrays["image"]).fingerprint
    assert opened((arrays["image"], arrays["labels"])).labels is not None


def test_folder_of_feeds_that_fit_together(tmp_path: Path) -> None:
    arrays = images()
    for i in range(6):
        np.savez(tmp_path / f"{i}.npz", image=arrays["image"][i : i + 1], labels=i % 3)
    data = opened({"path": str(tmp_path)})
    assert not data.ragged
    np.testing.assert_array_equal(data.feeds(range(6))["image"], arrays["image"])
    np.testing.assert_array_equal(data.labels, arrays["labels"])
    assert data.digests() == opened(arrays).digests()


def test_folder_of_feeds_of_different_lengths(tmp_path: Path) -> None:
    for i, time in enumerate((3, 5, 4)):
        ids = np.full((1, time), i, dtype=np.int64)
        np.savez(tmp_path / f"{i}.npz", ids=ids, mask=np.ones_like(ids), labels=np.array(["text"]))
    data = opened(tmp_path, inputs=TOKENS)
    assert data.ragged
    assert [feeds["ids"].shape for _, feeds in data.batches(8)] == [(1, 3), (1, 5), (1, 4)]
    assert list(data.labels) == ["text"] * 3
    with pytest.raises(UsageError, match="make no batch"):
        data.feeds([0, 1])


def test_feeds_with_several_rows_are_cut_into_samples() -> None:
    arrays = images()
    feeds = [({"image": arrays["image"][a:b]}, arrays["labels"][a:b]) for a, b in ((0, 4), (4, 6))]
    data = opened(iter(feeds))
    assert data.digests() == opened(arrays).digests()
    np.testing.assert_array_equal(data.labels, arrays["labels"])
    assert data.name(5) == "sample 1, row 1"


def test_feeds_without_a_common_batch_axis_are_samples_whole() -> None:
    inputs = (
        TensorSpec("state", "float32", (2, "batch", 8)),
        TensorSpec("frame", "float32", ("batch", 3)),
    )
    feed = {"state": np.zeros((2, 1, 8), np.float32), "frame": np.ones((1, 3), np.float32)}
    data = opened([feed, feed], inputs=inputs)
    assert data.ragged
    assert len(data) == 2
    assert data.feeds([1])["state"].shape == (2, 1, 8)


def test_module_function(tmp_path: Path) -> None:
    (tmp_path / "my_data_a.py").write_text(
        "import numpy as np\n"
        "def arrays():\n"
        "    return {'image': np.ones((3, 1, 4, 4), 'float32'), 'labels': [0, 1, 2]}\n"
        "def feeds():\n"
        "    for i in range(100):\n"
        "        yield {'image': np.full((1, 1, 4, 4), i, 'float32')}, i\n"
    )
    assert len(opened("my_data_a:arrays", base=tmp_path)) == 3
    assert len(opened({"path": "my_data_a:feeds", "limit": 7}, base=tmp_path)) == 7
    refused("my_data_a:arays", "arrays", base=tmp_path)


class Squares:
    """A map-style data set, as torch's are."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((1, 4, 4), index, np.float32), index * index


def test_map_style_data_set() -> None:
    data = opened(Squares())
    assert data.feeds([3, 2])["image"][:, 0, 0, 0].tolist() == [3.0, 2.0]
    assert list(data.labels) == [0, 1, 4, 9, 16]


def test_torch_data_set_and_loader() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    arrays = images()
    tensors = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["labels"])
    data_set = torch.utils.data.TensorDataset(*tensors)
    loader = torch.utils.data.DataLoader(data_set, batch_size=4)
    wanted = opened(arrays)
    assert opened(data_set).fingerprint == wanted.fingerprint
    assert opened(loader).fingerprint == wanted.fingerprint
    assert opened({"image": tensors[0], "labels": tensors[1]}).fingerprint == wanted.fingerprint


def test_opening_twice_is_free() -> None:
    data = opened(images())
    assert opened(data) is data


# ── choosing, fingerprints, overlap ──────────────────────────────────────────────────────────────


def test_limit_draws_with_the_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **images(50))
    first = opened({"path": "a.npz", "limit": 10}, base=tmp_path)
    again = opened({"path": "a.npz", "limit": 10, "seed": 0}, base=tmp_path)
    other = opened({"path": "a.npz", "limit": 10, "seed": 1}, base=tmp_path)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(first) == 10
    assert "10 of 50 samples are used (limit)" in first.warnings
    np.testing.assert_array_equal(first.labels, np.arange(50)[first.indices] % 3)


def test_fingerprint_sees_values_labels_and_order() -> None:
    arrays = images()
    prints = {opened(arrays).fingerprint, opened(images(seed=1)).fingerprint}
    prints.add(opened({**arrays, "labels": arrays["labels"][::-1]}).fingerprint)
    prints.add(opened({k: v[::-1] for k, v in arrays.items()}).fingerprint)
    prints.add(opened({"image": arrays["image"]}).fingerprint)
    prints.add(opened({**arrays, "labels": [str(x) for x in arrays["labels"]]}).fingerprint)
    assert len(prints) == 6
    assert opened({k: v.copy() for k, v in arrays.items()}).fingerprint in prints


def test_overlap_names_the_samples() -> None:
    arrays, other = images(20), images(10, seed=1)
    other["image"][7] = arrays["image"][12]
    a, b = opened(arrays), opened(other, "evaluation")
    with pytest.raises(UsageError, match=r"calibration\[12\] equals evaluation\[7\]"):
        check_disjoint(a, b)
    check_disjoint(a, opened(images(10, seed=2), "evaluation"))


def test_overlap_names_five_and_counts_the_rest() -> None:
    with pytest.raises(UsageError, match=r"(?s)20 of 20 .*evaluation\[4\] and 15 more"):
        check_disjoint(opened(images(20)), opened(images(30), "evaluation"))


def test_few_samples_are_said() -> None:
    assert "only 6 samples" in opened(images()).warnings[0]
    assert "cannot certify a drop of 1 %" in opened(images(299), "evaluation").warnings[0]
    assert opened(images(100)).warnings == opened(images(300), "evaluation").warnings == []


# ── fitting ──────────────────────────────────────────────────────────────────────────────────────


def test_casts_that_lose_nothing_are_done_and_said() -> None:
    data = opened({"image": images()["image"].astype(np.float64)})
    assert data.feeds([0])["image"].dtype == np.float32
    assert "image: float64 was converted to float32" in data.warnings
    ids = np.ones((2, 3), np.int32)
    assert opened({"ids": ids, "mask": ids}, inputs=TOKENS).feeds([0])["ids"].dtype == np.int64


def test_casts_the_user_asks_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pixels=np.full((3, 1, 4, 4), 200, np.uint8))
    spec = {"path": "a.npz", "cast": True, "names": {"pixels": "image"}}
    assert opened(spec, base=tmp_path).feeds([0])["image"].max() == 200.0


def test_arrays_that_are_no_input_are_ignored_and_said() -> None:
    data = opened({**images(), "ids": np.arange(6)})
    assert "array 'ids' is no input of the model and was ignored" in data.warnings[-1]


def bad(**changes: Any) -> dict[str, Any]:
    return {**images(), **changes}


def with_nan() -> np.ndarray:
    array = images()["image"]
    array[4, 0, 1, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("spec", "fragments"),
    [
        ({"imge": images()["image"]}, ["input 'image'", "got imge", "rename 'imge' to 'image'"]),
        (bad(image=with_nan()), ["NaN in array 'image', sample 4", "1 bad of 6"]),
        (
            bad(image=np.full((6, 1, 4, 4), np.inf, np.float32)),
            ["infinity in array 'image', sample 0"],
        ),
        (bad(image=np.zeros((6, 1, 4, 5), np.float32)), ["wrong shape", "[6, 1, 4, 5]"]),
        (bad(image=np.zeros((6, 4, 4), np.float32)), ["wrong shape", "missing axis"]),
        (bad(image=np.zeros((6, 4, 4, 1), np.float32)), ["transpose(0, 3, 1, 2)"]),
        (bad(image=np.zeros((6, 1, 4, 4), np.uint8)), ["wrong dtype", "scale it", "cast: true"]),
        (bad(image=np.zeros((6, 1, 4, 4), complex)), ["wrong dtype", "got complex128"]),
        (bad(labels=[1, 2]), ["wrong number of labels", "expected 6, got 2"]),
        (bad(labels=3), ["wrong number of labels"]),
        (bad(labels=np.full(6, np.nan)), ["label of sample 0 is not a number"]),
        ({"image": np.zeros((0, 1, 4, 4), np.float32)}, ["no samples"]),
        ([], ["no samples"]),
        (3.5, ["not data", "got float"]),
        ([{"image": images()["image"]}, {"imag": 0}], ["[1]: no array for the model's input"]),
        ([(1, 2, 3)], ["cannot tell inputs and label apart"]),
        ([({"image": images()["image"]}, [1, 2])], ["labels do not match", "expected 6 labels"]),
        ([{"image": [[1.0], [1.0, 2.0]]}], ["rows of different lengths"]),
        ([{"image": object()}], ["not an array of numbers", "got object"]),
    ],
)
def test_bad_data_is_named(spec: Any, fragments: list[str]) -> None:
    refused(spec, *fragments)


def test_values_that_do_not_fit() -> None:
    inputs = (TensorSpec("ids", "int32", ("batch", 1)),)
    refused({"ids": np.full((2, 1), 2**40)}, "do not fit int32", inputs=inputs)
    refused({"ids": np.ones((2, 1))}, "expected int32, got float64", inputs=inputs)


def test_lengths_that_differ() -> None:
    arrays = {"ids": np.ones((3, 2), np.int64), "mask": np.ones((4, 2), np.int64)}
    refused(arrays, "arrays of different lengths", "ids: 3, mask: 4", inputs=TOKENS)
    arrays = {"ids": np.ones((3, 2), np.int64), "mask": np.ones((3, 5), np.int64)}
    refused(arrays, "wrong shape of array 'mask'", inputs=TOKENS)
    refused(np.ones((3, 2), np.int64), "several inputs", inputs=TOKENS)


def test_labels_for_some() -> None:
    def feeds() -> Iterator[Any]:
        yield {"image": images()["image"]}, [0] * 6
        yield {"image": images()["image"]}

    refused(feeds(), "some samples have a label and some have none", "sample 6")


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_missing_and_misspelled_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", **images())
    refused("calibr.npz", "no such file or folder", "did you mean 'calib.npz'?", base=tmp_path)
    refused("no/such/place.npz", "there is no folder", base=tmp_path)
    refused({"path": "calib.npz", "limt": 3}, "unknown key 'limt'", "'limit'", base=tmp_path)
    refused({"path": "calib.npz", "limit": 0}, "1 or more", base=tmp_path)
    refused({"path": "calib.npz", "limit": -3}, "1 or more", base=tmp_path)
    refused({"path": "calib.npz", "cast": "yes"}, "true or false", base=tmp_path)
    refused({"path": "calib.npz", "names": "x"}, "a mapping", base=tmp_path)
    refused({"path": "calib.npz", "labels": "label"}, "did you mean 'labels'?", base=tmp_path)
    (tmp_path / "data.txt").write_text("1 2 3")
    refused("data.txt", "cannot read .txt files", base=tmp_path)
    (tmp_path / "empty").mkdir()
    refused("empty", "no pictures and no .npz files", base=tmp_path)


def test_feeds_are_no_pictures(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **images())
    spec = {"path": "a.npz", "preprocess": {"scale": "1/255"}}
    refused(spec, "holds no pictures", "leave preprocess out", base=tmp_path)
    refused({**spec, "path": str(tmp_path)}, "these are feeds and no pictures")


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **images())
    path.write_bytes(path.read_bytes()[:200])
    refused("a.npz", "not a readable .npz", base=tmp_path)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    ragged = np.array([np.zeros(2), np.zeros(3)], dtype=object)
    np.savez(tmp_path / "a.npz", image=ragged)
    refused("a.npz", "pickled objects, which are never loaded", "'image'", base=tmp_path)
    np.save(tmp_path / "b.npy", ragged, allow_pickle=True)
    refused("b.npy", "not a readable .npy", base=tmp_path)


def test_npz_with_something_else_in_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **images())
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")
    assert len(opened("a.npz", base=tmp_path)) == 6


def test_nan_names_the_file(tmp_path: Path) -> None:
    for i in range(3):
        image = images()["image"][i : i + 1]
        image[0, 0, 0, 0] = np.nan if i == 2 else 0
        np.savez(tmp_path / f"{i}.npz", image=image)
    refused(str(tmp_path), "NaN in array 'image', 2.npz")
