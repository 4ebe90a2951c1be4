"""What lies between the products: torch's form against transformers', the kernels against torch's, and who is chosen.

The kernels run in Triton's interpreter (in a process of its own: it must be asked for before they are defined), and are
compiled for every kind of GPU that is served. Neither needs one.
"""

import copy
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, silu
from transformers import Qwen3VLConfig, Qwen3VLModel
from transformers.models.qwen3_vl import modeling_qwen3_vl as theirs

from embedder.forward import fastest
from embedder.forward.cpu import CPU, FAST, Linear, filled, product
from embedder.forward.model import PackedModel
from embedder.forward.operations import TORCH, Operations, add_norm, linear_gelu, rotate, silu_mul
from embedder.forward.packing import pack
from embedder.forward.parts import fuse
from embedder.prepare.images import Patches
from embedder.prepare.renderer import Tokens
from embedder.prepare.sequence import Sequence
from lab.benchmarks.checkpoints import PUBLISHED, _draw
from tests.reference import random_checkpoint

TOKENS, EPS = 7, 1e-6
ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 6e-3}  # ‖ours − exact‖ / ‖exact‖


def off(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def angles(width: int, dtype: torch.dtype, tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor]:
    turned = draw(tokens, width // 2).repeat(1, 2) * 100
    return turned.cos().to(dtype), turned.sin().to(dtype)


def text(dtype: torch.dtype) -> tuple:
    """Queries and keys of the 4B's heads, a part of one tensor; their norms."""
    heads = draw(TOKENS, 48, 128, dtype=dtype)[:, :40]
    return heads, *angles(128, dtype), (1 + draw(128, dtype=dtype), draw(128, dtype=dtype) - 1), 32, EPS


@pytest.mark.parametrize("dtype", ROUNDED)
def test_text_is_turned_as_by_transformers(dtype):
    """No further from the exact numbers than transformers' own, which rounds four times more often."""

    def reference(heads, cosines, sines, norms, queries, eps):
        q, k = heads[:, :queries], heads[:, queries:]
        parts = (rms_norm(part, (128,), weight, eps)[None] for part, weight in zip((q, k), norms, strict=True))
        turned = theirs.apply_rotary_pos_emb(*parts, cosines[None], sines[None], unsqueeze_dim=2)
        return torch.cat(turned, dim=2)[0]

    given = text(dtype)
    wide = [each.double() if isinstance(each, torch.Tensor) else each for each in given]
    exact = reference(*wide[:3], tuple(each.double() for each in given[3]), *wide[4:])
    ours = rotate(*given)
    assert ours.dtype == dtype
    assert off(ours, exact) <= max(ROUNDED[dtype], 1.05 * off(reference(*given), exact))
    assert off(ours, reference(*given)) <= 2 * ROUNDED[dtype]


@pytest.mark.parametrize("dtype", ROUNDED)
def test_patches_are_turned_as_by_transformers(dtype):
    q, k = draw(2, TOKENS, 16, 72, dtype=dtype).unbind()
    cosines, sines = angles(72, torch.float32)
    expected = torch.cat(theirs.apply_rotary_pos_emb_vision(q, k, cosines, sines), dim=1)
    ours = rotate(torch.cat([q, k], dim=1), cosines, sines, None, 0, 0.0)
    torch.testing.assert_close(ours, expected, atol=1e-6 if dtype == torch.float32 else 0.04, rtol=0)
    assert (ours != expected).float().mean() < (
        1 if dtype == torch.float32 else 1e-3
    )  # the same, but where a tie falls


@pytest.mark.parametrize("dtype", ROUNDED)
def test_the_others_are_their_formulas(dtype):
    hidden, update, weight, bias = (draw(*shape, dtype=dtype) for shape in ((3, 64), (3, 64), (64,), (64,)))
    total = hidden + update
    for found, exact in zip(
        [*add_norm(hidden, update, weight, None, EPS), *add_norm(hidden, update, weight, bias, EPS)],
        [total, rms_norm(total, (64,), weight, EPS), total, layer_norm(total, (64,), weight, bias, EPS)],
        strict=True,
    ):
        assert torch.equal(found, exact)
    pair, matrix = draw(3, 128, dtype=dtype), draw(32, 128, dtype=dtype)
    assert torch.equal(silu_mul(pair), silu(pair[:, :64]) * pair[:, 64:])
    expected = gelu(linear(pair, matrix, weight[:32]), approximate="tanh")
    assert torch.equal(linear_gelu(pair, matrix, weight[:32]), expected)


def test_gradients_are_those_of_the_same_formula():
    heads, cosines, sines, norms, queries, eps = text(torch.float32)
    plain = rotate(heads, cosines, sines, norms, queries, eps)
    wanted = heads.clone().requires_grad_(True)
    turned = rotate(wanted, cosines, sines, norms, queries, eps)
    torch.testing.assert_close(turned.detach(), plain, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(turned.square().sum(), wanted)
    assert gradient.abs().min() > 0


def full_width() -> Qwen3VLModel:
    """One decoder layer and one vision block of the 4B, with weights that are bfloat16 numbers."""
    values = json.loads(PUBLISHED.read_text())
    values["text_config"] |= {"num_hidden_layers": 1, "vocab_size": 512}
    values["vision_config"] |= {"depth": 1, "deepstack_visual_indexes": [0]}
    torch.manual_seed(0)
    model = Qwen3VLModel(Qwen3VLConfig(**{key: value for key, value in values.items() if key != "model_type"})).float()
    _draw(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    return model.requires_grad_(False).eval()


@pytest.mark.benchmarks
def test_the_4bs_layers_at_full_width():
    """In bfloat16 no further from float32 than transformers' own, in float32 the same."""
    tokens = 4 * 4 // 4
    pixels = np.random.default_rng(0).integers(0, 256, (16, 768), dtype=np.uint8)
    image = Sequence(Tokens(np.arange(9 + tokens), ((3, 3 + tokens),), (3, 3 + tokens)), Patches(pixels, (4, 4)))
    packed = pack([Sequence(Tokens(np.arange(7), ((3, 5),))), image], reuse=False)

    whole, half = [0.5] * 3, SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def states(model: Qwen3VLModel, fused: bool) -> torch.Tensor:
        model = PackedModel.of(model, half) if fused else PackedModel(model, whole, whole)
        return model.final_norm(model.hidden(packed, [1])[1]).float()

    model = full_width()
    rounded = [copy.deepcopy(model) for _ in range(2)]
    for weight in itertools.chain.from_iterable(each.parameters() for each in rounded):  # buffers stay: frequencies
        weight.data = weight.data.bfloat16()
    exact = states(copy.deepcopy(model), False)
    assert off(states(model, True), exact) <= 1e-5
    assert off(states(rounded[0], True), exact) <= 1.02 * off(states(rounded[1], False), exact)


def test_the_kernels_compute_what_torch_does():
    """In the interpreter. Its last line says how many samples of how many operations were compared."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.interpreted"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "63 compared"


@pytest.mark.parametrize(
    "capability", [80, 90, *(pytest.param(each, marks=pytest.mark.benchmarks) for each in (89, 100))]
)
def test_the_kernels_compile_for(capability):
    """By the compiler and the assembler that torch brings: from Triton's language to machine code."""
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    from embedder.forward import kernels

    pointer, number = "*bf16", "i32"
    rotated = dict.fromkeys(("heads", "query_norm", "key_norm", "out"), pointer)
    counts = dict.fromkeys(("stride", "positions_stride", "count", "queries"), number)
    text_heads = rotated | {"cosines": pointer, "sines": pointer} | counts | {"eps": "fp32"}
    sizes = {"HALF": 64, "BLOCK": 64, "BLOCK_HEADS": kernels.HEADS, "NORMS": True}
    patches = text_heads | {"cosines": "*fp32", "sines": "*fp32"}
    rows = dict.fromkeys(("hidden", "update", "weight", "bias", "total", "normed"), pointer) | {"eps": "fp32"}
    wide = {"WIDTH": 2560, "BLOCK": 4096, "BIAS": False}
    full_attention = dict.fromkeys(("q", "k", "v", "out"), pointer) | {"offsets": "*i32", "scale": "fp32"}
    full_attention |= dict.fromkeys(("q_stride", "k_stride", "v_stride"), number)
    short_attention = dict.fromkeys(("qkv", "cosines", "sines", "query_norm", "key_norm", "out"), pointer)
    short_attention |= dict.fromkeys(("stride", "positions_stride", "tokens", "sequences"), number)
    short_attention |= {"offsets": "*i32", "scale": "fp32", "eps": "fp32"}
    few = {"QUERIES": 32, "KEYS": 8, "HALF": 64, "ROWS": 16, "BLOCK": 64}
    product = dict.fromkeys(("inputs", "weight", "out"), pointer) | dict.fromkeys(("rows", "width"), number)
    rounded = {"rows": pointer, "out": "*fp8e4nv", "scales": "*fp32", "width": number}
    since_ada = [
        (kernels.to_float8_kernel, rounded, {"BLOCK": block, "ACTIVATION": activation})
        for block, activation in ((4096, ""), (16384, "silu_mul"), (4096, "gelu"))
    ]
    for kernel, signature, constants in (
        (kernels.rotate_kernel, text_heads, sizes),
        (kernels.rotate_kernel, patches, sizes | {"HALF": 36, "NORMS": False}),
        (kernels.add_norm_kernel, rows, wide),
        (kernels.add_norm_kernel, rows, wide | {"BIAS": True}),
        (kernels.silu_mul_kernel, {"gate_up": pointer, "out": pointer, "width": number}, {"BLOCK": kernels.COLUMNS}),
        (kernels.linear_silu_mul_kernel, product, {"INPUTS": 2560, "ROWS": 32, "OUTPUTS": 64, "STEP": 64}),
        (kernels.short_attention_kernel, short_attention, few),
        (kernels.full_attention_kernel, full_attention, {"HEADS": 16, "WIDTH": 64, "TILE": kernels.TILE}),
        *(since_ada if capability >= 89 else []),
    ):
        names = kernel.arg_names
        kinds = {name: "constexpr" if name in constants else signature[name] for name in names}
        source = compiler.ASTSource(kernel, kinds, {(names.index(name),): value for name, value in constants.items()})
        compiled = compiler.compile(source, target=target, options={"num_warps": 4})
        assert compiled.asm["cubin"][:4] == b"\x7fELF"
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        if kernel is kernels.to_float8_kernel:  # to nearest, nothing above 448, and NaN is kept
            assert "cvt.rn.satfinite.e4m3x2" in compiled.asm["ptx"]
            assert "min.NaN" in compiled.asm["ptx"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Qwen3VLModel.from_pretrained(random_checkpoint(tmp_path_factory.mktemp("random"))).eval()


@pytest.mark.parametrize("name", vars(TORCH))
def test_what_disagrees_or_fails_is_not_chosen(model, name, caplog):
    def wrong(*given):
        out = getattr(TORCH, name)(*given)
        return (out[0], out[1] * 1.02) if isinstance(out, tuple) else out * 1.02

    def failing(*_):
        raise RuntimeError("Failed to find C compiler")

    def chosen(operation) -> bool:
        return fastest.agrees(name, Operations(**{**vars(TORCH), name: operation}), model)

    assert chosen(getattr(TORCH, name))
    assert not caplog.text
    assert not chosen(wrong)
    assert "fused, it was off by 0.02" in caplog.text
    assert not chosen(failing)
    assert f"{name} runs as torch's own operators, which takes longer: Failed to find C compiler" in caplog.text


def test_a_cpu_has_operations_of_its_own(model):
    """Also a canary: oneDNN's is a private one of torch."""
    assert fastest.fastest(model).fused == list(FAST)
    assert TORCH.fused == []


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("name", FAST)
@pytest.mark.filterwarnings("ignore")  # a trace's: its shapes become constants
def test_a_cpus_compute_what_torch_does(model, name, dtype):
    """Ordinary and traced."""
    like = SimpleNamespace(config=model.config, device=model.device, dtype=dtype)
    for rows in (1, 3):
        for given in fastest.samples(name, like, rows):
            exact = fastest.results(getattr(TORCH, name), [fastest._float(each) for each in given])
            first, *rest = given
            with torch.inference_mode():
                traced = torch.jit.trace(
                    lambda one, rest=rest: getattr(CPU, name)(one, *rest), first, check_trace=False
                )
            for operation in (getattr(CPU, name), lambda *given, traced=traced: traced(given[0])):
                ours = fastest.results(operation, given)
                assert {each.dtype for each in ours} == {dtype}
                assert all(off(*pair) <= ROUNDED[dtype] for pair in zip(ours, exact, strict=True))


def test_onednn_sees_few_different_numbers_of_rows():
    """It keeps a program for each: a server in bfloat16 grew with every length of a pass that it had not seen yet."""
    sizes = {rows: len(filled(torch.empty(rows, 1))) for rows in range(1, 8193)}
    assert all(rows <= size <= rows * 17 / 16 for rows, size in sizes.items())
    assert len(set(sizes.values())) <= 200
    given, matrix = draw(1, 1001, 64, dtype=torch.bfloat16), draw(32, 64, dtype=torch.bfloat16)
    assert torch.equal(product(given, matrix), linear(given, matrix))


def test_a_cpus_products_are_of_few_numbers_of_rows(tmp_path):
    model = Qwen3VLModel.from_pretrained(random_checkpoint(tmp_path), dtype=torch.bfloat16).eval()
    fuse(model, CPU)
    assert {type(part) for part in model.modules() if isinstance(part, torch.nn.Linear)} == {Linear}


@pytest.mark.parametrize("name", vars(TORCH))
def test_what_is_fused_is_told_by_name(name):
    assert Operations(**{**vars(TORCH), name: print}).fused == [name]
