"""What a pass asks of a GPU, counted without one: the rules of counting, the bounds, and that nothing grows."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn.functional import linear, rms_norm

from embedder.forward import fastest
from embedder.forward.operations import TORCH, linear_gelu_at_once
from lab.benchmarks import count
from lab.benchmarks.results import FOLDER

MOST = {"1024×1024": 8.0e9, "64 swatches": 0.6e9}  # bytes of an item's elementwise kernels
MOST_WITHOUT_A_COMPILER = {"1024×1024": 17.7e9, "64 swatches": 1.26e9}


@cache
def counted(case: str) -> count.Row:
    return count.count(count.published(), case)


def elementwise(row: count.Row) -> float:
    return row.figures()["elementwise_bytes"]


@pytest.mark.parametrize("case", count.CASES)
def test_nothing_grows(case):
    """Beyond what docs/performance.md shows. Where it shrinks: `python -m lab.benchmarks.count`, then `table`."""
    told = next(
        row for row in json.loads((FOLDER / "count-4b-cpu.json").read_text())["figures"]["rows"] if row["case"] == case
    )
    found = counted(case).figures()
    for name, value in found.items():
        if name.endswith(("_kernels", "_bytes")):
            assert value == pytest.approx(told[name], rel=1e-3), name


@pytest.mark.parametrize("case", MOST)
def test_elementwise_traffic_is_bounded(case):
    assert elementwise(counted(case)) <= MOST[case]


@pytest.mark.parametrize("case", MOST)
def test_elementwise_traffic_is_bounded_where_nothing_compiles(case, monkeypatch):
    without = replace(TORCH, linear_gelu=linear_gelu_at_once)
    monkeypatch.setattr(fastest, "fused_operations", lambda: without)
    assert elementwise(count.count(count.published(), case)) <= MOST_WITHOUT_A_COMPILER[case]


X, W = (torch.zeros(rows, 64, dtype=torch.bfloat16) for rows in (8, 32))
ROW = torch.tensor([5])
BYTES = 2 * 8 * 64  # of X


@pytest.mark.parametrize(
    ("work", "kind", "kernels", "read", "written"),
    [
        (lambda: X + X, "elementwise", 1, 2 * BYTES, BYTES),
        (lambda: X * X[:1], "elementwise", 1, BYTES + BYTES // 8, BYTES),
        (lambda: X * X[:1].expand(8, -1), "elementwise", 1, BYTES + BYTES // 8, BYTES),
        (lambda: X.t().reshape(-1), "elementwise", 1, BYTES, BYTES),  # what cannot be a view is a copy
        (lambda: X.view(4, 128)[1:].t(), "elementwise", 0, 0, 0),
        (lambda: torch.empty_like(X).copy_(X), "elementwise", 1, BYTES, BYTES),
        (lambda: X.clone().add_(X), "elementwise", 2, 3 * BYTES, 2 * BYTES),
        (lambda: torch.addcmul(X, X, X, out=torch.empty_like(X)), "elementwise", 1, 3 * BYTES, BYTES),
        (lambda: X.index_select(0, ROW), "elementwise", 1, BYTES // 8 + 8, BYTES // 8),
        (lambda: rms_norm(X, (64,)), "elementwise", 1, BYTES, BYTES),
        (lambda: rms_norm(X[:, :32], (32,)), "elementwise", 2, BYTES, BYTES),  # CUDA copies it first
        (lambda: linear(X, W), "products", 1, 5 * BYTES, BYTES // 2),
    ],
)
def test_what_is_counted(work, kind, kernels, read, written):
    with torch.inference_mode(), count.Counting() as counting:
        work()
    assert counting.traffic[kind] == count.Traffic(kernels, read, written)
