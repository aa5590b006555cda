"""The coder of weights: what goes in comes out, near its entropy; damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.package.encoding import Encoder, encode
from runtimes import nibbles
from runtimes.blob import HEAD, MAGIC, Copy, decode
from runtimes.coding import COPY, HALF, INT4, INT8, UINT4, UINT8, WIDTHS, WORD, Segment
from runtimes.errors import BadArtifact
from runtimes.nibbles import Decoder, Table


def there_and_back(symbols: np.ndarray, contexts: np.ndarray, count: int) -> int:
    encoder = Encoder()
    encoder.code(Table(count), contexts, symbols)
    blob = encoder.finish()
    decoder = Decoder(memoryview(blob))
    assert np.array_equal(decoder.code(Table(count), contexts, None), symbols)
    decoder.finish()
    return len(blob)


def weights(kind: int, count: int, seed: int = 0, spread: float = 0.3) -> bytes:
    """Bell-shaped weights of a kind, as bytes."""
    values = np.random.default_rng(seed).standard_normal(count) * spread
    if kind == WORD:
        return values.astype("<f4").tobytes()
    if kind == HALF:
        return values.astype("<f2").tobytes()
    if kind in (INT8, UINT8):
        whole = np.clip(np.round(values * 127), -128, 127).astype(np.int8)
        return whole.tobytes() if kind == INT8 else (whole.view(np.uint8) ^ 128).tobytes()
    whole = np.clip(np.round(values * 7), -8, 7).astype(np.int64)
    halves = whole & 15 if kind == INT4 else whole + 8
    return (halves[0::2] | halves[1::2] << 4).astype(np.uint8).tobytes()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 15), max_size=400), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_any_symbols_come_back(symbols, count, seed):
    contexts = np.random.default_rng(seed).integers(0, count, len(symbols))
    there_and_back(np.array(symbols, np.int64), contexts, count)


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 50_000])
def test_symbols_cost_little_more_than_their_entropy(count):
    symbols = np.clip(np.round(np.random.default_rng(1).standard_normal(count) * 2 + 8), 0, 15)
    size = there_and_back(symbols.astype(np.int64), np.zeros(count, np.int64), 1)
    shares = np.bincount(symbols.astype(np.int64), minlength=16) / max(count, 1)
    bits = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * count
    assert size <= bits / 8 * 1.01 + 60


def test_frames_end_and_begin_within_a_tensor(monkeypatch):
    monkeypatch.setattr("compressor.package.encoding.FRAME", 1000)
    symbols = np.random.default_rng(2).integers(0, 16, 8_000)
    there_and_back(symbols, np.zeros(len(symbols), np.int64), 1)


def test_a_context_that_tells_all_costs_nearly_nothing():
    symbols = np.random.default_rng(3).integers(0, 16, 40_000)
    assert there_and_back(symbols, symbols, 16) < 400


@pytest.mark.parametrize("kind", [INT4, UINT4, INT8, UINT8, HALF, WORD])
@pytest.mark.parametrize("kernel", [1, 9])
def test_every_kind_comes_back_and_is_smaller(kind, kernel):
    if kernel > 1 and WIDTHS[kind] > 1:
        kernel = 1
    body = weights(kind, 36_000)
    data = b"head" + body + b"tail"
    blob = encode(data, [Segment(4, len(body), kind, kernel)])
    assert bytes(decode(blob, len(data))) == data
    assert len(blob) < 0.96 * len(body)


@pytest.mark.parametrize("kind", [INT4, UINT4, INT8, UINT8, HALF, WORD])
def test_every_kind_comes_back_from_its_base(kind):
    old, new = weights(kind, 36_000), bytearray(weights(kind, 36_000))
    for at in range(0, len(new), 100):
        new[at] ^= 1
    blob = encode(bytes(new), [Segment(0, len(new), kind, 1, 3)], b"old" + old)
    assert bytes(decode(blob, len(new), b"old" + old)) == new
    assert len(blob) < 0.3 * len(encode(bytes(new), [Segment(0, len(new), kind)]))


@pytest.mark.parametrize("kind", [INT4, INT8, HALF, WORD])
def test_slabs_and_kernels_fit_each_other(kind, monkeypatch):
    monkeypatch.setattr("runtimes.coding._SLAB", 1000)
    kernel = 9 if WIDTHS[kind] == 1 else 1
    body = weights(kind, 18_000)
    assert bytes(decode(encode(body, [Segment(0, len(body), kind, kernel)]), len(body))) == body


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_bytes_in_any_segments_come_back(data):
    kinds = st.sampled_from([COPY, INT4, UINT4, INT8, UINT8, HALF, WORD])
    base = data.draw(st.binary(max_size=300))
    made, segments = b"", []
    for _ in range(data.draw(st.integers(0, 4))):
        made += data.draw(st.binary(max_size=40))
        kind, kernel = data.draw(kinds), data.draw(st.integers(1, 9))
        kernel = kernel if WIDTHS[kind] == 1 and kind != COPY else 1
        step = max(kernel, WIDTHS[kind])
        size = data.draw(st.integers(0, 60)) * step
        old = data.draw(st.integers(-1, len(base) - size)) if size <= len(base) else -1
        if kind == COPY and old < 0:
            continue
        segments.append(Segment(len(made), size, kind, kernel, old))
        made += base[old : old + size] if kind == COPY else data.draw(
            st.binary(min_size=size, max_size=size)
        )  # fmt: skip
    blob = encode(made, segments, base)
    assert bytes(decode(blob, len(made), base)) == made
    assert encode(made, segments, base) == blob


def test_copies_fill_what_lies_outside_segments():
    base, body = bytes(range(256)), weights(INT8, 500)
    data = b"new" + base[10:60] + body + base[100:200] + b"end"
    copies = [Copy(3, 50, 10), Copy(0, 100, 100)]
    blob = encode(data, [Segment(53, 500, INT8)], base, copies)
    assert bytes(decode(blob, len(data), base)) == data


def blob_of_all() -> tuple[bytes, int, bytes]:
    base = weights(INT8, 200, 5)
    data = b"x" * 50 + weights(INT4, 900) + weights(INT8, 200) + weights(WORD, 50) + base[:100]
    segments = [
        Segment(50, 450, INT4, 9), Segment(500, 200, INT8, 1, 0), Segment(700, 200, WORD),
    ]  # fmt: skip
    return encode(data, segments, base, [Copy(50, 100, 0)]), len(data), base


def test_damage_is_refused_or_changes_the_data():
    blob, size, base = blob_of_all()
    whole = bytes(decode(blob, size, base))
    for at in range(0, len(blob), 29):
        damaged = bytearray(blob)
        damaged[at] ^= 0x41
        try:
            assert bytes(decode(bytes(damaged), size, base)) != whole
        except BadArtifact:
            continue


@pytest.mark.parametrize("keep", [0, 3, 20, 100, 500, -1])
def test_a_truncated_blob_is_refused(keep):
    blob, size, base = blob_of_all()
    with pytest.raises(BadArtifact):
        decode(blob[:keep], size, base)


def test_trailing_bytes_are_refused():
    blob, size, base = blob_of_all()
    with pytest.raises(BadArtifact, match="left over"):
        decode(blob + b"\0", size, base)


@pytest.mark.parametrize(("size", "base"), [(1, None), (10**6, None), (None, b""), (None, b"x")])
def test_another_size_or_base_is_refused(size, base):
    blob, true_size, true_base = blob_of_all()
    with pytest.raises(BadArtifact):
        decode(blob, true_size if size is None else size, true_base if base is None else base)


def test_another_magic_is_refused():
    with pytest.raises(BadArtifact, match="not a coding known here"):
        decode(HEAD.pack(b"ECC9", 0, 0), 0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_hostile_headers_are_refused(header):
    import lzma

    from runtimes.blob import FILTERS

    packed = lzma.compress(header, lzma.FORMAT_RAW, filters=FILTERS)
    blob = HEAD.pack(MAGIC, len(header), len(packed)) + packed
    try:
        assert len(decode(blob, 20, b"base")) == 20
    except BadArtifact:
        return


def test_a_bomb_of_plain_bytes_is_refused():
    import lzma

    from runtimes.blob import FILTERS

    packed = lzma.compress(bytes(50_000_000), lzma.FORMAT_RAW, filters=FILTERS)
    with pytest.raises(BadArtifact, match="sizes that cannot be"):
        decode(HEAD.pack(MAGIC, 50_000_000, len(packed)) + packed, 100)
    with pytest.raises(BadArtifact, match="another length"):
        decode(HEAD.pack(MAGIC, 100, len(packed)) + packed, 100)


def test_shares_of_a_table_fill_the_range_and_none_is_empty():
    table = Table(3)
    table.learn(np.zeros(10**6, np.int64), np.zeros(10**6, np.int64))
    bounds = table.bounds()
    assert (bounds[:, -1] == nibbles.TOTAL).all()
    assert (np.diff(bounds, axis=1) >= 1).all()
    table.fade()
    assert table.counts.sum(axis=1).max() < 400
