"""What a pass asks of a GPU, counted without one: kernels and bytes by kind, and host CPU time.

    python -m lab.benchmarks.count

The 4B's published configuration on torch's meta device, which has shapes and no numbers, by the very path that a GPU
takes. Every operator that is no view is a kernel. It reads each of its inputs once and writes each output once, at the
size in which they lie in memory. A fused kernel is an operator of our own and is counted alike. Real kernels may read
more (a product that does not fit the caches); none reads less.

`host ms` is CPU time of a pass of the same depth and almost no width on the CPU, where our kernels do nothing. It is
what Python and torch's dispatcher cost, without CUDA's own launches, 2 to 4 µs a kernel; Triton's launcher takes more.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from time import thread_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3VLConfig, Qwen3VLModel

from embedder.forward import kernels
from embedder.forward.model import PackedModel
from embedder.forward.operations import TORCH
from embedder.forward.packing import pack
from embedder.prepare.images import Patches
from embedder.prepare.renderer import Tokens
from embedder.prepare.sequence import Sequence
from lab.benchmarks.checkpoints import PUBLISHED
from lab.benchmarks.results import ResultsOption, Run, console

KINDS = ("products", "attention", "elementwise")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmv", "_addmm_activation", "linear_gelu", "linear_silu_mul")
FREE = ("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "_reshape_alias", "detach", "lift_fresh")
WHOLE = ("rms_norm",)  # one kernel on CUDA, and several elsewhere
ROWS = ("embedding", "index_select", "index", "gather")  # read what they take, not the whole table
PROMPT = 18  # tokens of the default prompt around a name or an image, name included
CASES: dict[str, tuple[int, int]] = {  # how many inputs, and patches along the side of each; 0 for a name
    "name": (1, 0),
    "64 names": (64, 0),
    "64 swatches": (64, 16),
    "512×512": (1, 32),
    "1024×1024": (1, 64),
}
NARROW: dict[str, dict[str, Any]] = {  # the same operators, and next to nothing to compute
    "text_config": {"hidden_size": 64, "intermediate_size": 64, "head_dim": 128}
    | {"num_attention_heads": 4, "num_key_value_heads": 1},
    "vision_config": {"hidden_size": 64, "intermediate_size": 64, "num_heads": 1, "out_hidden_size": 64},
}
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass
class Traffic:
    """Of one kind of kernel."""

    kernels: int = 0
    read: int = 0  # bytes
    written: int = 0


class Counting(TorchDispatchMode):
    """Counts what runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = {kind: Traffic() for kind in KINDS}
        self.operators: Counter[str] = Counter()  # bytes by operator

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = function._schema.name.rpartition("::")[2]
        if name not in WHOLE:
            with self:  # in inference mode composite operators arrive whole
                if (parts := function.decompose(*args, **given)) is not NotImplemented:
                    return parts
        out = function(*args, **given)
        if not function.is_view and name not in FREE:
            self._count(name, function._schema, args, given, out)
        return out

    def _count(self, name: str, schema: Any, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> None:
        named = dict(zip((each.name for each in schema.arguments), args, strict=False)) | given
        outputs = {id(each) for each in tensors(out)}
        changed = [
            tensor
            for each in schema.arguments
            if each.alias_info is not None and each.alias_info.is_write
            for tensor in tensors(named.get(each.name))
        ]
        written = sum(map(size, changed)) or sum(map(size, tensors(out)))
        inputs = [each for each in tensors(list(named.values())) if id(each) not in outputs]
        if name.endswith("_") and name not in ("copy_", "fill_", "zero_"):
            inputs += changed
        if name in ROWS:
            inputs = inputs[1:]
        read = sum(map(size, inputs)) + (written if name in ROWS else 0)
        traffic = self.traffic[kind_of(name)]
        traffic.kernels += 1
        if name == "rms_norm" and not inputs[0].is_contiguous():  # CUDA's takes a copy of it
            traffic.kernels += 1
            read += size(inputs[0])
            written += size(inputs[0])
        traffic.read += read
        traffic.written += written
        self.operators[name] += read + written


def kind_of(operator: str) -> str:
    if operator.rstrip("_") in PRODUCTS:
        return "products"
    return "attention" if "attention" in operator or "attn" in operator else "elementwise"


def tensors(value: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]


def size(tensor: torch.Tensor) -> int:
    """Bytes of the numbers that it stands for: one that is repeated by a stride of 0 counts once."""
    numbers = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= length if stride or length == 0 else 1
    return numbers * tensor.element_size()


def published(device: str = "meta", **narrower: dict[str, Any]) -> PackedModel:
    """The 4B in bfloat16; on `meta` without numbers, as a GPU would run it. `narrower`: other sizes."""
    config = {key: value for key, value in json.loads(PUBLISHED.read_text()).items() if key != "model_type"}
    for part, changes in narrower.items():
        config[part] = config[part] | changes
    with torch.device(device):
        model = Qwen3VLModel(Qwen3VLConfig(**config))
    dtype = torch.bfloat16 if device == "meta" else torch.float32  # few CPUs are quick at the former
    pixels = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return PackedModel.of(model.to(dtype).eval(), pixels)


def hollow(model: PackedModel) -> PackedModel:
    """The same on a CPU with our own kernels asked for and not run: for its time only."""
    setattr(kernels, "_launch", lambda *_: None)  # noqa: B010
    for part in (model, *model.model.modules()):
        if hasattr(part, "operations"):
            part.operations = replace(kernels.FUSED, linear_gelu=TORCH.linear_gelu)
    return model


def sequence(side: int) -> Sequence:
    """A name, or an image of `side`² patches."""
    tokens = side**2 // 4
    if not side:
        return Sequence(Tokens(np.arange(PROMPT), ((3, 5),)))
    patches = Patches(np.zeros((side**2, 768), np.uint8), (side, side))
    return Sequence(Tokens(np.arange(PROMPT + tokens), ((4, 4 + tokens),), (4, 4 + tokens)), patches)


def a_pass(model: PackedModel, items: int, side: int) -> Callable[[], object]:
    """The forward pass over `items` inputs that are on the device already, up to the last token's states."""
    packed = pack([sequence(side)] * items, model.device)
    last = torch.zeros(items, dtype=torch.long, device=model.device)
    run = partial(model.hidden, packed, [model.layers], last)
    run()  # what is computed once for each image size
    return run


@dataclass(frozen=True)
class Row:
    """One pass."""

    case: str
    items: int
    traffic: dict[str, Traffic]
    operators: Counter[str] = field(repr=False)
    host_ms: float

    def figures(self) -> dict[str, Any]:
        """Bytes are an item's."""
        kernels = {f"{kind}_kernels": each.kernels for kind, each in self.traffic.items()}
        sizes = {f"{kind}_bytes": (each.read + each.written) / self.items for kind, each in self.traffic.items()}
        return {"case": self.case, "items": self.items, **kernels, **sizes, "host_ms": self.host_ms}


def count(model: PackedModel, case: str) -> Row:
    """One case, without its time."""
    items, side = CASES[case]
    run = a_pass(model, items, side)
    with Counting() as counting:
        run()
    return Row(case, items, counting.traffic, counting.operators, 0.0)


def host_ms(model: PackedModel, case: str, times: int = 9) -> float:
    """The least CPU time of this thread for one pass of a few small inputs of that kind."""
    items, side = CASES[case]
    run = a_pass(model, min(items, 2), min(side, 4))
    took = []
    for _ in range(times):
        started = thread_time()
        run()
        took.append(thread_time() - started)
    return min(took) * 1e3


def rows() -> Iterator[Row]:
    whole, narrow = published(), hollow(published("cpu", **NARROW))
    for case in CASES:
        yield replace(count(whole, case), host_ms=host_ms(narrow, case))


@app.command(epilog="Example: python -m lab.benchmarks.count")
def main(results: ResultsOption = None, operators: bool = typer.Option(False, help="Say bytes by operator.")) -> None:
    """Count what passes of the 4B's published shape ask of a GPU, on a machine without one."""
    torch.set_num_threads(1)
    run = Run("count", "4b", "cpu", results=results, chosen=False)
    ceiling = run.ceiling()
    found = list(rows())
    for row in found if operators else []:
        parts = ", ".join(f"{name} {bytes_ / row.items / 1e9:.3g}" for name, bytes_ in row.operators.most_common(20))
        console.print(f"{row.case}: GB by operator: {parts}")
    run.finish(ceiling, "the 4B's published shape on the meta device", {"rows": [row.figures() for row in found]})


if __name__ == "__main__":
    app()
