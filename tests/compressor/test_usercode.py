"""What the user's own functions do wrong is theirs; what we do wrong is ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.nearby import closest_file
from compressor.statistics import t_quantile
from compressor.usercode import takes, users_error
from runtimes.errors import UsageError


def caught(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011 - any error of the function's
        function()
    return info.value


def theirs() -> None:
    raise ValueError("oops")


def through_a_library() -> None:
    import numpy as np

    np.stack([])


def test_an_error_in_the_users_file_names_its_line() -> None:
    for function, name in ((theirs, "theirs"), (through_a_library, "through_a_library")):
        found = users_error(caught(function))
        assert found is not None
        assert __file__ in found.where
        assert name in found.what


def test_an_error_in_our_code_is_ours_even_when_theirs_called_it() -> None:
    error = caught(lambda: t_quantile("x", 3))  # type: ignore[arg-type]
    assert users_error(error) is None


def test_a_function_that_takes_other_arguments() -> None:
    takes(lambda outputs, labels: 0, 2, "metric", "function(outputs, labels)")
    with pytest.raises(UsageError, match=r"expected function\(run\), got function\(\)"):
        takes(lambda: 0, 1, "evaluator m:f", "function(run)")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("calb.npz", "calib.npz"), ("missing.npz", None), ("net.data", "net.onnx"), ("x.onnx", None)],
)
def test_near_misses_of_file_names(tmp_path: Path, wanted: str, found: str | None) -> None:
    for name in ("calib.npz", "strings.npz", "net.onnx"):
        (tmp_path / name).touch()
    close = closest_file(tmp_path / wanted)
    assert (close.name if close else None) == found
