"""The kernels against torch's form of them in Triton's interpreter: `TRITON_INTERPRET=1 python -m tests.interpreted`.

(`tests/test_operations.py` runs it: the interpreter must be asked for before the kernels are defined.)
"""

import itertools

import torch

from embedder.forward import kernels, operations
from embedder.forward.attention import Bounds
from embedder.forward.kernels import FUSED
from embedder.forward.operations import TORCH
from tests.test_operations import EPS, ROUNDED, TOKENS, angles, draw, off, text

HALF = {torch.float32: 2e-6, torch.float16: 1e-3}  # as `ROUNDED`: the interpreter multiplies no matrices of bfloat16


def samples(dtype: torch.dtype) -> list[tuple[str, tuple]]:
    """Widths that are powers of two and others, one row and several, parts of a wider tensor, no rows at all."""
    vision = draw(TOKENS, 3 * 16, 72, dtype=dtype)[:, : 2 * 16]
    hidden, update = draw(1, 3, 2560, dtype=dtype), draw(1, 3, 2560, dtype=dtype).flip(0, 2)
    patches = draw(5, 96, dtype=dtype), draw(5, 96, dtype=dtype).flip(1)
    return [
        ("rotate", text(dtype)),
        ("rotate", (vision, *angles(72, torch.float32), None, 0, 0.0)),
        ("rotate", (draw(TOKENS, 3, 16, dtype=dtype), *angles(16, dtype), (draw(16, dtype=dtype),) * 2, 2, EPS)),
        ("add_norm", (hidden, update, draw(2560, dtype=dtype), None, EPS)),
        ("add_norm", (*patches, draw(96, dtype=dtype), draw(96, dtype=dtype) + 1, EPS)),
        ("linear_silu_mul", (draw(1, 33, 16, dtype=dtype), draw(2 * 1500, 16, dtype=dtype))),
        ("linear_silu_mul", (draw(3, 16, dtype=dtype), draw(128, 16, dtype=dtype))),
    ]


def main() -> None:
    compared = 0
    for dtype, most in ROUNDED.items():
        for name, given in samples(dtype):
            wide = [each.double() if isinstance(each, torch.Tensor) else each for each in given]
            wide = [tuple(t.double() for t in each) if isinstance(each, tuple) else each for each in wide]
            ours, exact = (
                out if isinstance(out, tuple) else (out,)
                for out in (getattr(FUSED, name)(*given), getattr(TORCH, name)(*wide))
            )
            for mine, other in zip(ours, exact, strict=True):
                assert (mine.dtype, mine.shape) == (dtype, other.shape), name
                assert off(mine, other) <= most, (name, dtype, off(mine, other))
                compared += 1
    compared += of_few_rows() + full_attention() + short_attention() + float8()
    nothing = FUSED.linear_silu_mul(torch.empty(0, 128), torch.empty(256, 128))
    assert nothing.shape == (0, 128)
    print(f"{compared} compared")


def of_few_rows() -> int:
    """A product, where the kernel takes it: 1 row, some, and the most."""
    weight, counts = (draw(256, 192) / 14).half(), (1, 18, 32)
    for rows in counts:
        x = draw(1, rows, 192).half()
        ours = FUSED.linear_silu_mul(x, weight)
        assert (ours.dtype, ours.shape) == (torch.float16, (1, rows, 128))
        assert off(ours, TORCH.linear_silu_mul(x.double(), weight.double())) <= HALF[torch.float16]
    return len(counts)


def full_attention() -> int:
    """Images of less than a tile, of tiles, and some more. The last one's numbers are none: they are nobody else's."""
    lengths, last = [1, 5, 64, 65, 200, 130, 2], slice(-2, None)
    for dtype, most in HALF.items():
        q, k, v = draw(sum(lengths), 6, 64, dtype=dtype).chunk(3, dim=1)
        v[last] = torch.inf
        ours = FUSED.full_attention(q, k, v, Bounds.of(lengths), 0.125)
        exact = TORCH.full_attention(q.double(), k.double(), v.double(), Bounds.of(lengths), 0.125)
        assert (ours.dtype, ours.shape) == (dtype, q.shape)
        assert not ours[last].isfinite().any()
        assert off(ours[:-2], exact[:-2]) <= most
    return len(HALF)


def short_attention() -> int:
    """A bucket's texts, the last one's values no numbers, and after it sequences of no tokens."""
    compared = 0
    for (dtype, most), lengths in itertools.product(HALF.items(), ([1, 5, 12, 3, 22, 7], [60, 50, 7])):
        tokens = sum(lengths)
        qkv, turns = draw(tokens, 8 + 2 * 2, 64, dtype=dtype), angles(64, dtype, tokens)
        norms = 1 + draw(64, dtype=dtype), draw(64, dtype=dtype) - 1
        qkv[-7:, -2:] = torch.inf
        ours = FUSED.short_attention(qkv, *turns, norms, 8, EPS, Bounds.of([*lengths, 0, 0]), 0.125)
        cosines, sines, first, second = (each.double() for each in (*turns, *norms))
        exact = TORCH.short_attention(qkv.double(), cosines, sines, (first, second), 8, EPS, Bounds.of(lengths), 0.125)
        assert (ours.dtype, ours.shape) == (dtype, exact.shape)
        assert not ours[-7:].isfinite().any()
        assert off(ours[:-7], exact[:-7]) <= most
        compared += 1
    return compared


def float8() -> int:
    """But for the last conversion, one instruction of a GPU's: the interpreter (Triton 3.7) loses a carry in it.

    So both write what they would convert. Returns how many tensors were compared.
    """
    assert [each.shape for each in kernels.to_float8(draw(2, 3, 96))] == [(6, 96), (6, 1)]
    assert kernels.to_float8(torch.empty(0, 128), "silu_mul")[0].shape == (0, 64)
    vars(kernels)["FLOAT8"] = vars(operations)["FLOAT8"] = torch.float32
    compared = 0
    for dtype, activation in itertools.product(ROUNDED, ("", "gelu", "silu_mul")):
        for shape in ((3, 2 * 1500), (1, 2, 96), (1, 128)):
            given = draw(*shape, dtype=dtype).flip(-1) * 30
            found, exact = kernels.to_float8(given, activation), operations.to_float8(given, activation)
            for mine, other in zip(found, exact, strict=True):
                assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
                assert off(mine, other) <= 2e-6, (activation, dtype, off(mine, other))
                compared += 1
            assert found[0].abs().max() <= 448
    given = draw(3, 64)
    given[0, 3], given[1, 4], given[2] = torch.nan, torch.inf, 0
    rows, scale = kernels.to_float8(given)
    products = (rows * scale).sum(dim=1)
    assert products[:2].isnan().all()
    assert products[2] == 0
    return compared


if __name__ == "__main__":
    main()
