"""Looking into stored tensors: slices, seeking, steps side by side, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from tui_driving import enter, press, run, says, screen_text, shows, until

from tracelens_tui import pictures
from tracelens_tui.widgets.heatmap import Heatmap


async def to_tensors(pilot: Pilot[int], row: int = 1) -> None:
    """Go to the tensors of op 19: 0 is its input, 1 its output, 2 and on what was stored."""
    await press(pilot, "]")
    await shows(pilot, "op 20/24")
    await press(pilot, "3")
    await shows(pilot, "1 NaN, 1 +Inf of 768")
    if row != 1:
        pilot.app.screen.query_one("#targets").go(row)


def test_x_walks_the_non_finite_elements_and_plus_and_minus_find_the_extremes(
    tensor_trace: Path,
) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await to_tensors(pilot)
        await press(pilot, "x")
        await shows(pilot, "element [5, 7] = ✖ nan")
        await press(pilot, "x")
        await shows(pilot, "element [20, 30] = ∞ inf")
        await press(pilot, "x")
        await says(pilot, "no further non-finite element")
        await press(pilot, "X")
        await shows(pilot, "element [5, 7] = ✖ nan")
        await press(pilot, "+")
        await shows(pilot, "element [23, 31] = 3")
        await press(pilot, "-")
        await shows(pilot, "element [0, 0] = -3")

    run(tensor_trace, script)


def test_a_slice_is_what_the_views_show(tensor_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await to_tensors(pilot)
        await enter(pilot, "[", "[0:2, :]")
        await shows(pilot, "out 0[0:2, :]", "[2, 32]", "✓ 64 finite")
        await enter(pilot, "[", "[99]")
        await says(pilot, "does not fit the shape")
        await enter(pilot, "[", "[__import__('os')]")
        await says(pilot, "not an index")

    run(tensor_trace, script)


def test_v_goes_through_heatmap_values_and_image(tensor_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await to_tensors(pilot, row=3)
        await shows(pilot, "image  float32 [3, 16, 16]")
        screen = pilot.app.screen
        shown = []
        for _ in range(3):
            shown.append(
                [w for w in ("heatmap", "values", "image") if screen.query_one(f"#{w}").display]
            )
            await press(pilot, "v")
        assert shown == [["heatmap"], ["values"], ["image"]]

    run(tensor_trace, script)


def test_two_steps_stand_side_by_side_on_one_scale(tensor_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await to_tensors(pilot, row=3)
        await shows(pilot, "image  float32 [3, 16, 16]")
        await press(pilot, "t")
        await shows(pilot, "─step 2─", "─step 1─")
        maps = list(pilot.app.screen.query(Heatmap))
        assert [(m._low, m._high) for m in maps] == [(0.0, 2.0), (0.0, 2.0)]
        await press(pilot, "t")
        await until(pilot, lambda: "─step 1─" not in screen_text(pilot.app))  # type: ignore[arg-type]

    run(tensor_trace, script)


def test_export_writes_the_slice_and_never_overwrites(tensor_trace: Path) -> None:
    async def script(pilot: Pilot[int]) -> None:
        await to_tensors(pilot)
        await press(pilot, "E")
        line = pilot.app.screen.query_one("Prompt Input")
        assert line.value == "export out0 out0-step2.npy"
        await press(pilot, "enter")
        await says(pilot, "written to out0-step2.npy")
        await press(pilot, "E", "enter")
        await says(pilot, "exists; -f overwrites it")

    run(tensor_trace, script)

    values = np.load("out0-step2.npy")
    assert values.shape == (24, 32)
    assert np.isnan(values[5, 7])
    assert np.isposinf(values[20, 30])


def test_a_missing_blob_is_told_in_place(tensor_trace: Path) -> None:
    for blob in tensor_trace.glob("_blobs/*/*"):
        blob.unlink()

    async def script(pilot: Pilot[int]) -> None:
        await press(pilot, "]", "3")
        await says(pilot, "missing or not part of the trace")

    run(tensor_trace, script)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.zeros(()), (1, 1)),
        (np.zeros((0, 4)), (1, 4)),
        (np.arange(7), (1, 7)),
        (np.zeros((3, 5, 2), dtype=bool), (15, 2)),
        (np.full((2, 2), 1 + 1j), (2, 2)),
    ],
)
def test_any_shape_and_dtype_can_be_drawn(array: np.ndarray, shape: tuple[int, int]) -> None:
    picture = pictures.picture_of(array, 40, 40)

    assert picture.grid.values.shape == shape
    assert picture.stats.numel == array.size


def test_a_grid_keeps_the_mean_and_marks_the_cell_of_a_single_bad_element() -> None:
    matrix = np.ones((1000, 900), dtype=np.float32)
    matrix[503, 701] = np.nan

    grid = pictures.shrink(matrix, 10, 9)

    assert np.argwhere(grid.nan).tolist() == [[5, 7]]
    assert grid.values.tolist() == np.ones((10, 9)).tolist()
    assert (grid.rows[5], grid.columns[7]) == (500, 700)


def test_statistics_and_seeking_agree_with_numpy_over_many_bands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "_BAND_BYTES", 256)
    array = np.random.default_rng(0).standard_normal((37, 41)).astype(np.float32)
    array[3, 4], array[20, 0], array[36, 40] = np.nan, np.inf, -np.inf
    finite = array[np.isfinite(array)].astype(np.float64)

    stats = pictures.measure(array)

    assert (stats.nan, stats.posinf, stats.neginf) == (1, 1, 1)
    assert np.isclose(stats.mean, finite.mean())
    assert np.isclose(stats.std, finite.std())
    bad = np.flatnonzero(~np.isfinite(array)).tolist()
    assert [pictures.find_bad(array, after, 1) for after in (-1, bad[0], bad[1], bad[2])] == [
        *bad,
        None,
    ]
    assert [pictures.find_bad(array, after, -1) for after in (bad[2], bad[1], bad[0])] == [
        bad[1],
        bad[0],
        None,
    ]
    assert pictures.find_extreme(array, True) == int(
        np.nanargmax(np.where(np.isinf(array), np.nan, array))
    )


def test_channels_may_come_first_or_last() -> None:
    assert pictures.image_of(np.zeros((3, 20, 30))).shape == (20, 30, 3)
    assert pictures.image_of(np.zeros((20, 30, 3))).shape == (20, 30, 3)
    assert pictures.image_of(np.zeros((8, 1, 28, 28))).shape == (28, 28, 1)
    assert pictures.image_of(np.zeros(12)) is None
