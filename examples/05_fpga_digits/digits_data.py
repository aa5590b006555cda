"""scikit-learn's 1,797 digits (UCI, 8x8 pixels, 17 grey levels), split once and for all.

Nothing is trained or calibrated on the 360 test digits; options are chosen on the selection digits.
"""

import numpy as np
from sklearn.datasets import load_digits

Arrays = dict[str, np.ndarray]

TEST, SELECTION, SEED = 360, 180, 0


def training() -> Arrays:
    """1,257 digits."""
    return _part(slice(TEST + SELECTION, None))


def calibration() -> Arrays:
    """300 of the digits that `training` returns."""
    return _part(slice(TEST + SELECTION, TEST + SELECTION + 300))


def selection() -> Arrays:
    """180 digits to choose options by."""
    return _part(slice(TEST, TEST + SELECTION))


def evaluation() -> Arrays:
    """The 360 test digits."""
    return _part(slice(TEST))


def _part(chosen: slice) -> Arrays:
    pixels, labels = load_digits(return_X_y=True)
    rows = np.random.default_rng(SEED).permutation(len(pixels))[chosen]
    return {
        "pixels": (pixels[rows] / 16).astype(np.float32),
        "labels": labels[rows].astype(np.int64),
    }
