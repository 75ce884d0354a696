"""The native kernels and the numpy fallback against numpy itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tracelens import stats
from tracelens.stats import fallback

native = pytest.importorskip("tracelens.stats._native", reason="the extension is not built")

DTYPES = ("float32", "float64", "float16", "complex64", "complex128", "int64", "uint8", "bool")
SIZES = (0, 1, 2, 15, 31, 32, 33, 63, 64, 65, 4095, 4096, 4097, 16384, 20000)


@np.errstate(all="ignore")
def reference(array: np.ndarray) -> tuple:
    if array.dtype.kind == "c":
        array = array.astype(np.complex128)
        values = np.where(np.isnan(array.real) | np.isnan(array.imag), np.nan, np.abs(array))
    else:
        values = array
    values = values.astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    counts = (
        values.size,
        int(np.isnan(values).sum()),
        int(np.isposinf(values).sum()),
        int(np.isneginf(values).sum()),
        int((values == 0).sum()),
        finite.size,
    )
    if not finite.size:
        return (*counts, 0.0, 0.0, 0.0, 0.0, 0.0)
    l2 = math.sqrt(float((finite**2).sum()))
    return (*counts, finite.min(), finite.max(), finite.mean(), finite.std(), l2)


def agree(found: tuple, expected: tuple) -> None:
    assert found[:6] == expected[:6]
    assert found[6:8] == pytest.approx(expected[6:8], rel=1e-12, abs=0)
    scale = max(abs(expected[6]), abs(expected[7]))
    assert found[8:10] == pytest.approx(expected[8:10], rel=1e-6, abs=1e-6 * scale)
    assert found[10] == pytest.approx(expected[10], rel=2e-6, abs=0)


def sample(size: int, dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(3.0, 10.0, size)
    if dtype.startswith("complex"):
        return (values + 1j * rng.normal(size=size)).astype(dtype)
    return values.astype(np.int16).astype(dtype) if dtype == "uint8" else values.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_dtype_agrees_with_numpy(size: int, dtype: str) -> None:
    array = sample(size, dtype)
    agree(native.stats(array), reference(array))
    agree(fallback.stats(array), reference(array))
    assert native.check(array) == fallback.check(array) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64", "complex128"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_element_is_found_wherever_it_is(dtype: str, bad: float) -> None:
    for size in (1, 17, 64, 1000, 16385):
        for place in {0, size // 2, size - 1}:
            array = sample(size, dtype, seed=size)
            array[place] = bad
            assert native.check(array) == fallback.check(array) == 1, (size, place)
            assert native.first_bad(array) == fallback.first_bad(array, 4) == (place,)
            agree(native.stats(array), reference(array))
            agree(fallback.stats(array), reference(array))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_extremes_and_denormals_are_finite(dtype: str) -> None:
    limits = np.finfo(dtype)
    array = np.array(
        [limits.max, -limits.max, limits.tiny, limits.smallest_subnormal, 0.0, -0.0] * 20, dtype
    )
    assert native.check(array) == fallback.check(array) == 0
    for found in (native.stats(array), fallback.stats(array)):
        assert found[4] == 40
        assert found[6:8] == (-float(limits.max), float(limits.max))
        assert math.isfinite(found[9])
        assert found[9] == pytest.approx(float(limits.max) / math.sqrt(3), rel=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e5])
@pytest.mark.parametrize("spread", [1e-30, 1e-12, 1.0, 1e15, 1e25])
def test_std_survives_offsets_and_tiny_and_huge_values(shift: float, spread: float) -> None:
    array = (np.random.default_rng(1).normal(size=10_000) * spread + shift).astype(np.float32)
    for found in (native.stats(array), fallback.stats(array)):
        expected = reference(array)
        assert found[9] == pytest.approx(expected[9], rel=1e-5, abs=1e-6 * abs(shift))
        assert found[10] == pytest.approx(expected[10], rel=2e-6)


def test_an_outlier_as_the_first_element_does_not_cost_digits() -> None:
    array = np.random.default_rng(2).normal(size=8192).astype(np.float32)
    array[[0, 2048, 4096]] = 1e6
    agree(native.stats(array), reference(array))


def test_float64_squares_beyond_range_are_scaled() -> None:
    for size in (1e300, 1e-300):
        array = np.random.default_rng(3).normal(size=1000) * size
        expected = reference(array / size)
        for found in (native.stats(array), fallback.stats(array)):
            assert found[9] / size == pytest.approx(expected[9], rel=1e-9)
            assert found[10] / size == pytest.approx(expected[10], rel=1e-9)


def test_strided_views_are_read_in_place() -> None:
    base = sample(60 * 70, "float32").reshape(60, 70)
    base[7, 9] = np.nan
    views = (
        base.T, base[::2], base[:, ::3], base[::-1, ::-1], base[7:8, 5:20], base[:, 9],
        np.broadcast_to(base[7], (5, 70)), base.reshape(6, 10, 70).transpose(2, 0, 1),
    )  # fmt: skip
    for view in views:
        agree(native.stats(view), reference(view))
        assert native.check(view) == int(np.isnan(view).any())
        expected = tuple(np.flatnonzero(np.isnan(view.ravel()))[:4])
        assert native.first_bad(view) == expected


def test_what_cannot_be_read_is_not_judged() -> None:
    for thing in (None, 3.0, "text", [1.0], np.array(["a"]), np.array([object()])):
        assert native.check(thing) == fallback.check(thing) == -1
        assert native.stats(thing) is None
        assert fallback.stats(thing) is None
    assert native.check(np.zeros(3, ">f4")) == -1


def test_first_nonfinite_tells_which_array_is_bad() -> None:
    good, bad = np.zeros(3), np.array([np.inf])
    assert native.first_nonfinite([good, "text", bad, bad]) == 2
    assert native.first_nonfinite([good]) == native.first_nonfinite([]) == -1
    assert stats.first_nonfinite([good, bad]) == 1
    with pytest.raises(TypeError, match="list"):
        native.first_nonfinite((good,))


def test_measure_gives_none_where_nothing_is_finite() -> None:
    measured = stats.measure(np.full(3, np.nan, np.float32))
    assert measured is not None
    assert (measured.numel, measured.nan, measured.vmin, measured.std) == (3, 3, None, None)


def test_measure_clamps_to_what_a_record_can_hold() -> None:
    measured = stats.measure(np.array([1e300, -1e300]))
    assert measured is not None
    assert np.float32(measured.vmax) == np.finfo(np.float32).max
    assert np.isfinite(np.float32(measured.l2))


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=40),
        elements={"allow_nan": True, "allow_infinity": True},
    )
)
def test_any_array_has_exact_counts_and_bounds(array: np.ndarray) -> None:
    expected = reference(array)
    for found in (native.stats(array), fallback.stats(array)):
        assert found[:6] == expected[:6]
        assert found[6:8] == expected[6:8]
    assert native.check(array) == int(expected[5] != expected[0])
