"""Checks 0 and 1: is everything there, and what nothing on this machine can pass."""

import importlib
import os
import pkgutil
import platform
import subprocess
from collections.abc import Iterator
from types import ModuleType

import torch

import embedder
from embedder.forward.attention import varlen_kernel
from embedder.forward.budget import free_bytes
from embedder.forward.hardware import Card
from lab import benchmarks
from lab.benchmarks.gpu_checks.bench import Bench
from lab.benchmarks.gpu_checks.figures import Figure, fast, right, skipped, told
from lab.benchmarks.gpu_checks.timing import device_seconds, replayed_seconds
from lab.benchmarks.hardware import versions

PACKAGES = (
    *("torch", "torchvision", "transformers", "numpy", "pillow"),
    *("accelerate", "qwen-vl-utils", "pydantic-settings"),
)
NEEDS_BYTES = 14e9  # the 4B's weights in bfloat16, and a pass


def surroundings(bench: Bench) -> Iterator[Figure]:
    """Check 0: modules, versions, the device and its settings."""
    found = versions(PACKAGES)
    packages = (f"{name} {found[name]}" if name in found else f"no {name}" for name in PACKAGES)
    yield told("python", ", ".join([platform.python_version(), *packages]))
    yield from _modules(embedder)
    yield from _modules(benchmarks)
    yield told("cores", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")
    tf32 = torch.get_float32_matmul_precision() != "highest" or bool(os.environ.get("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"))
    yield right("float32 products rounded to TF32 (1: unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)", float(tf32), most=0)
    yield told("free memory", free_bytes(torch.device(bench.device)) / 1e9, "GB")
    kernel = varlen_kernel(torch.device(bench.device), bench.dtype)
    yield told("attention over packed sequences", getattr(kernel, "__name__", "SDPA, grouped by length"))
    if bench.on_gpu:
        yield from _device(bench)
    else:
        yield skipped("CUDA, driver and architectures")


def _modules(package: ModuleType) -> Iterator[Figure]:
    """Every module of a package. Of the benchmarks those for the adapter may want what is not installed."""
    wrong: dict[str, str] = {}
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in (name for name in names if not name.endswith("__main__")):
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            wrong[name.rpartition(".")[2]] = f"{type(error).__name__}: {error}"
    what = f"modules of {package.__name__} that do not import, of {len(names)}"
    if package is embedder:
        yield right(f"{what} {wrong or ''}".rstrip(), len(wrong), most=0)
    else:
        yield told(what, "; ".join(f"{name}: {why}" for name, why in wrong.items()) or 0)


def _device(bench: Bench) -> Iterator[Figure]:
    about = torch.cuda.get_device_properties(bench.device)
    card = Card.seen()[torch.device(bench.device).index]
    yield told("device", f"{about.name}, sm_{about.major}{about.minor}, {about.multi_processor_count} multiprocessors")
    yield told("driver", f"{_driver()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    architectures = torch.cuda.get_arch_list()
    built = [each for each in architectures if card.runs([each])]
    yield right(f"architectures of torch that run here, of {' '.join(architectures)}", len(built), least=1)
    yield right("compute capability: bfloat16 kernels begin with", about.major + about.minor / 10, least=8.0)
    yield right("a kernel's answer", float(torch.arange(4, device=bench.device).sum().item()), least=6, most=6)
    yield fast("free memory for the 4B", torch.cuda.mem_get_info(bench.device)[0] / 1e9, "GB", least=NEEDS_BYTES / 1e9)
    settings = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(("PYTORCH", "CUDA", "TORCH"))}
    yield told("settings of torch and CUDA", ", ".join(f"{name}={value}" for name, value in settings.items()) or "none")


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        return "driver " + subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not answer ({type(error).__name__})"


def ceilings(bench: Bench) -> Iterator[Figure]:
    """Check 1: matrix products, copies, and the model's own products by the number of rows."""
    yield fast(
        "8192³ product" if bench.on_gpu else "2048³ product",
        bench.ceiling.matmul_flops / 1e12,
        "TFLOP/s",
        least=bench.card(h100=700, h200=700),
        expected="H100: 790, H200: 760",
    )
    yield fast(
        "copy on the device",
        bench.ceiling.copy_bytes / 1e9,
        "GB/s",
        least=bench.card(h100=2700, h200=3900),
        expected="H100: 3,000; H200: 4,200",
    )
    yield from _to_device(bench)
    yield from _products(bench)


def _to_device(bench: Bench) -> Iterator[Figure]:
    if not bench.on_gpu:
        yield skipped("copy from page-locked memory")
        return
    source = torch.ones(2**28, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(source, device=bench.device)
    took = device_seconds(lambda: target.copy_(source, non_blocking=True), bench.device)
    yield fast("copy from page-locked memory", source.nbytes / took / 1e9, "GB/s", least=20)


@torch.inference_mode()
def _products(bench: Bench) -> Iterator[Figure]:
    """One decoder layer's, as served: queries, keys and values are one, gate and up another. No cache holds them all.

    Replayed: for a few rows the host would take longer to launch them than the device to read their weights.
    """
    text = bench.config["text_config"]
    width, mlp, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    shapes = [(heads + 2 * keys, width), (width, heads), (2 * mlp, width), (width, mlp)]
    like = {"device": bench.device, "dtype": bench.dtype}
    layer = [torch.randn(shape, **like) for shape in shapes]
    weights = sum(weight.numel() for weight in layer)
    for rows in bench.sizes.rows:
        given = {inputs: torch.randn(rows, inputs, **like) for inputs in {width, mlp, heads}}

        def products(given: dict[int, torch.Tensor] = given) -> list[torch.Tensor]:
            return [torch.nn.functional.linear(given[weight.shape[1]], weight) for weight in layer]

        took = replayed_seconds(products, bench.device)
        what = f"a decoder layer's products, {rows:,} rows"
        if rows < 64:  # the weights are read, and little is computed
            read = weights * layer[0].itemsize / took
            share = read / bench.ceiling.copy_bytes
            least = 0.6 if bench.on_gpu else None  # an H200: 0.7 in the kernels of a lone name, gaps left out
            yield fast(f"{what}, {read / 1e9:,.0f} GB/s of weights", share, "of the copy's", least=least)
            continue
        share = 2 * rows * weights / took / bench.ceiling.matmul_flops
        least = 0.8 if bench.on_gpu and rows == bench.sizes.rows[-1] else None
        yield fast(what, share, "of the ceiling", least=least)
        if least and share < least:
            chosen = torch.backends.cuda.preferred_blas_library()
            torch.backends.cuda.preferred_blas_library("cublaslt")
            faster = took / replayed_seconds(products, bench.device)
            torch.backends.cuda.preferred_blas_library(chosen)
            yield told(f"{what}, by cublasLt", faster, "times as fast")
