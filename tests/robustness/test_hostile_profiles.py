"""Profiles whose tables say what cannot be: every view answers, in text, in JSON, on the screen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracelens.analysis.profile.data import load_profile
from tracelens.cli import main
from tracelens.cli._profile_text import render
from tracelens.cli.profile import _VIEWS, VIEWS, Profile
from tracelens.errors import TraceLensError
from tracelens.events import OpFlag
from tracelens.storage.bulk import BulkShard, Coded
from tracelens.storage.reader import open_trace

HUGE = 1 << 62
EVIL = "\x1b[2J\x9b31m[bold]x[/bold][/nope][@click=app.quit]q[/][link=file:///etc]<script>alert(1)</script>\r\n\u202eevil"
Tables = dict[str, dict[str, Any]]


def sound() -> Tables:
    """Return two steps of nested ops, calls, kernels on two streams, a collective and memory."""
    n = 12
    at = np.arange(n) * 1000
    step = np.arange(n) // 6
    return {
        "ops": {
            "op_id": np.arange(n), "parent_id": np.arange(n) // 3 * 3 - (np.arange(n) % 3 == 0),
            "step": step, "ord": np.arange(n), "name": Coded(np.arange(n) % 3, ["a", "b", "mm"]),
            "module": Coded(np.arange(n) % 2, ["net", "net.fc"]), "start_ns": at,
            "phase": Coded(np.arange(n) % 3, ["forward", "backward", "optimizer"]),
            "duration_ns": np.where(np.arange(n) % 3, 800, 2900), "tid": 1, "file": "a.py",
            "line": 3, "in_shapes": "[[2, 3], [3, 4]]", "in_dtypes": '["float", "float"]',
            "flags": int(OpFlag.PROFILED),
        },
        "spans": {
            "span_id": np.arange(n), "step": step, "start_ns": at + 10, "tid": 1,
            "duration_ns": np.full(n, 100), "corr_id": np.arange(n), "op_id": np.arange(n),
            "kind": Coded(np.arange(n) % 4, ["runtime", "data", "python", "annotation"]),
            "name": Coded(np.arange(n) % 2, ["cudaLaunchKernel", "cudaStreamSynchronize"]),
        },
        "kernels": {
            "kern_id": np.arange(n), "step": step, "start_ns": at + 500, "device": np.arange(n) % 2,
            "stream": np.arange(n) % 2, "corr_id": np.arange(n), "op_id": np.arange(n),
            "span_id": np.arange(n), "duration_ns": np.full(n, 700),
            "kind": Coded(np.arange(n) % 3, ["kernel", "comm", "memcpy"]),
            "name": Coded(np.arange(n) % 3, ["gemm", "ncclAllReduce", "Memcpy HtoD"]),
            "size_bytes": np.full(n, 4096), "collective": Coded(np.arange(n) % 3 - 1, ["x", "y"]),
        },
        "memory": {
            "step": step, "t_ns": at, "device": Coded(np.arange(n) % 2, ["cuda:0", "cpu"]),
            "size_bytes": np.where(np.arange(n) % 2, 512, -512), "address": np.arange(n) // 2,
            "allocated_bytes": np.full(n, 4096), "op_id": np.arange(n),
        },
        "counters": {"t_ns": at, "name": "gpu", "value": np.linspace(0, 1, n)},
    }  # fmt: skip


def every(tables: Tables, column: str, value: Any) -> None:
    for columns in tables.values():
        if column in columns:
            columns[column] = np.full(12, value) if isinstance(value, int | float) else value


def negative(tables: Tables) -> None:
    every(tables, "duration_ns", -1000)
    every(tables, "size_bytes", -HUGE)
    every(tables, "allocated_bytes", -HUGE)


def huge(tables: Tables) -> None:
    for column in ("start_ns", "duration_ns", "t_ns", "size_bytes", "allocated_bytes"):
        every(tables, column, HUGE)


def spread(tables: Tables) -> None:
    ends = np.where(np.arange(12) % 2, HUGE, -HUGE)
    for column in ("start_ns", "t_ns", "duration_ns"):
        every(tables, column, ends)


def last_number(tables: Tables) -> None:
    every(tables, "start_ns", (1 << 63) - 1)
    every(tables, "duration_ns", (1 << 63) - 1)


def cycles(tables: Tables) -> None:
    tables["ops"]["parent_id"] = (np.arange(12) + 1) % 12
    tables["ops"]["fwd_op_id"] = np.arange(12)


def own_parents(tables: Tables) -> None:
    tables["ops"]["parent_id"] = np.arange(12)


def lost(tables: Tables) -> None:
    for column in ("op_id", "span_id", "corr_id", "parent_id"):
        for name in ("kernels", "spans", "memory"):
            if column in tables[name] and (name, column) != ("spans", "span_id"):
                tables[name][column] = np.arange(12) * 10**12 - 7
    tables["ops"]["parent_id"] = np.arange(12) * 10**12


def gaps(tables: Tables) -> None:
    tables["ops"]["op_id"] = np.arange(12) * 10**9
    tables["kernels"]["kern_id"] = tables["spans"]["span_id"] = np.arange(12) * 10**9


def twice(tables: Tables) -> None:
    for name, column in (("ops", "op_id"), ("kernels", "kern_id"), ("spans", "span_id")):
        tables[name][column] = np.full(12, 3)


def backwards(tables: Tables) -> None:
    for name, column in (("ops", "op_id"), ("kernels", "kern_id"), ("spans", "span_id")):
        tables[name][column] = np.arange(12)[::-1]


def nulls(tables: Tables) -> None:
    keep = {"op_id", "kern_id", "span_id", "start_ns", "duration_ns", "name", "kind", "t_ns",
            "device", "stream", "step", "ord", "size_bytes", "value", "tid"}  # fmt: skip
    for name, columns in tables.items():
        first = {"ops": "op_id", "spans": "span_id", "kernels": "kern_id"}.get(name, "")
        for column in set(columns) - keep | {"op_id", "span_id"} - {first}:
            columns.pop(column, None)


def evil_names(tables: Tables) -> None:
    for column in ("name", "module", "file", "in_shapes", "in_dtypes", "collective"):
        every(tables, column, EVIL)
    tables["memory"]["device"] = EVIL


def evil_kinds(tables: Tables) -> None:
    every(tables, "kind", EVIL)
    every(tables, "phase", EVIL)


def empty_names(tables: Tables) -> None:
    for column in ("name", "module", "file"):
        every(tables, column, "")


def no_numbers(tables: Tables) -> None:
    tables["counters"]["value"] = np.array([np.nan, np.inf, -np.inf, 1e308] * 3)
    tables["kernels"]["occupancy"] = np.array([np.nan, np.inf, -np.inf, 1e308] * 3)


def devices(tables: Tables) -> None:
    tables["kernels"]["device"] = np.array([-1, 2**31 - 1, -(2**31)] * 4)
    tables["kernels"]["stream"] = np.array([-1, 2**31 - 1, -(2**31)] * 4)


def steps(tables: Tables) -> None:
    every(tables, "step", np.array([-1, -(1 << 31), (1 << 31) - 1, 0] * 3))


def shapes(tables: Tables) -> None:
    odd = ["[" * 5000, "[[1e400]]", f"[[{10**40}, 1], [1, {10**40}]]", '{"a": 1}', "[null]",
           '[["x"], [[[]]]]', "NaN", "[[-5, 3], [3, -5]]", "",
           f"[[{HUGE}, {HUGE}], [{HUGE}, {HUGE}]]", "[[NaN, 1], [1, Infinity]]",
           "[[2.5, 1], [1, 2]]"]  # fmt: skip
    tables["ops"]["name"] = "aten::mm"
    tables["ops"]["in_shapes"] = Coded(np.arange(12), odd)
    tables["ops"]["in_dtypes"] = Coded(np.arange(12), odd[::-1])
    tables["ops"]["in_values"] = Coded(np.arange(12), odd)


POISONS: list[Callable[[Tables], None]] = [
    negative, huge, spread, last_number, cycles, own_parents, lost, gaps, twice, backwards, nulls,
    evil_names, evil_kinds, empty_names, no_numbers, devices, steps, shapes,
]  # fmt: skip


def written(path: Path, poison: Callable[[Tables], None] | None = None) -> Path:
    tables = sound()
    if poison is not None:
        poison(tables)
    for rank in range(2):
        with BulkShard(path, rank, epoch_unix_ns=0, world_size=3, host=EVIL) as shard:
            for name, columns in tables.items():
                shard.write(name, columns)
            for step in range(2):
                shard.event("step", step=step, start_ns=6000 * step, duration_ns=5900)
            if poison is steps:
                for number in (-7, 0, (1 << 31) - 1):
                    shard.event("step", step=number, start_ns=-HUGE, duration_ns=-HUGE)
                    shard.event("step", step=number, start_ns=HUGE, duration_ns=HUGE)
            shard.event("note", kind=EVIL, severity="info", message=EVIL)
    with open_trace(path) as reader:
        assert reader.sql("SELECT count(*) FROM kernels") == [(24,)], reader.health().problems
    return path


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def readable(text: str) -> None:
    """Nothing that a terminal obeys, and no line that a name has begun."""
    assert not any(line.startswith(("\u202e", "\\x202e")) for line in text.split("\n"))
    assert all(line.isprintable() for line in text.split("\n")), repr(text)


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_every_view_answers_in_text_and_in_json(
    poison: Callable[[Tables], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = str(written(tmp_path / "a.tltrace", poison))
    parser = Profile().parser()
    with open_trace(trace) as reader:
        data = load_profile(reader, 0, None)
        for view in VIEWS:
            for by in ("name", "shape", "module", "line"):
                options = parser.parse_args([trace, view, "--by", by, "--device", "H100"])
                readable(answer(view, data, options))
                if view not in ("kernels", "ops", "tree"):
                    break
    for verb in (["profile"], ["profile", trace, "flame"], ["summary"], ["ranks"], ["why"]):
        words = [verb[0], *verb[1:]] if len(verb) > 1 else [verb[0], trace]
        assert main(words) in (0, 1)
        readable(capsys.readouterr().out)
        assert main([*words, "--json"]) in (0, 1)
        strict(capsys.readouterr().out)


def answer(view: str, data: Any, options: argparse.Namespace) -> str:
    found = _VIEWS[view](data, options)
    json.dumps(found, default=str)
    return render(view, found, options)


@pytest.mark.parametrize("poison", POISONS, ids=lambda poison: poison.__name__)
def test_every_view_of_the_screen_answers(poison: Callable[[Tables], None], tmp_path: Path) -> None:
    pytest.importorskip("textual")
    from tracelens_tui import profile_views

    with open_trace(written(tmp_path / "a.tltrace", poison)) as reader:
        for name in profile_views.VIEWS:
            for by in profile_views.GROUPINGS:
                try:
                    view = profile_views.read(reader, name=name, by=by, rank=0)
                except TraceLensError as error:
                    readable(str(error))
                    continue
                readable(view.summary)


@pytest.mark.parametrize(
    "poison", [evil_names, evil_kinds, huge, spread, negative], ids=lambda each: each.__name__
)
def test_a_report_of_it_is_a_page_without_markup_of_the_trace(
    poison: Callable[[Tables], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = written(tmp_path / "a.tltrace", poison)
    page = tmp_path / "a.html"
    if main(["report", str(trace), "-o", str(page)]) != 0:
        told = capsys.readouterr().err
        assert poison in (huge, spread) and told.count("\n") == 1
        return
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\x1b" not in text and "\u202e" not in text


@pytest.mark.parametrize("poison", [evil_names, huge, spread], ids=lambda each: each.__name__)
def test_it_is_exported_and_drawn(poison: Callable[[Tables], None], tmp_path: Path) -> None:
    trace = written(tmp_path / "a.tltrace", poison)
    write = partial(main_of, trace, tmp_path)
    for form in ("perfetto", "speedscope", "csv"):
        assert write("export", "--format", form) in (0, 2, 3)
    pytest.importorskip("matplotlib")
    assert write("plot") in (0, 2)


def main_of(trace: Path, folder: Path, verb: str, *words: str) -> int:
    names = {"perfetto": "a.json", "speedscope": "a.speedscope.json", "csv": "a.csv"}
    target = folder / (names[words[-1]] if words else "a.png")
    return main([verb, str(trace), *words, "-o", str(target)])
