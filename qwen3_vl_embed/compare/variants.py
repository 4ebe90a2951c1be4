"""Every vector that our own code can make of an input, and which of them another vector is.

A variant is a choice for each setting. Prompt, order and pixels decide the states of an input's tokens: a forward pass.
Layer, norm and pooling are read off the states and cost none. Settings that no option of ours has are here too: they
are what other code does.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate

from embedder import Embedder, EmbedError, Options
from embedder.forward.packing import pack
from embedder.options import Layer
from embedder.prepare import images
from embedder.prepare.prompts import Prompt, prompt
from embedder.prepare.sequence import Sequence
from embedder.published import SERIES_PIXELS
from qwen3_vl_embed.compare.inputs import Input
from qwen3_vl_embed.compare.local import upright
from qwen3_vl_embed.compare.sides import Vector

Pixels: TypeAlias = NDArray[np.uint8]  # (H, W, 3)
Bounds: TypeAlias = tuple[int, int]  # least and largest area


@dataclass(frozen=True)
class Choice:
    """One setting's value, for people.

    `options`: of a request, which make it so; None where no option of ours does. `does`: what the code here needs.
    """

    setting: str
    value: str
    options: Mapping[str, Any] | None = field(compare=False, repr=False)
    does: Any = field(compare=False, repr=False, default=None)


Variant: TypeAlias = tuple[Choice, ...]


@dataclass
class Found:
    """The variants that all the vectors are, each with its least cosine.

    `nearest`: where there is none, what is nearest to the first vector, and its cosine.
    """

    variants: dict[Variant, float] = field(default_factory=dict)
    nearest: tuple[Variant, float] | None = None


# ---- What stands around the content

# System turns that others add: Qwen3-VL-Embedding's code, and Qwen2-VL's chat template.
SYSTEMS = ("Represent the user's input.", "You are a helpful assistant.")
ENDS = [  # `does`: a special token that is appended, how many tokens are cut off
    Choice("end", "the template's", {"pooling": "last"}, (None, 0)),
    Choice("end", "<|endoftext|> appended", {"pooling": "eos"}, ("<|endoftext|>", 0)),
    Choice("end", "the template's without its last token", None, (None, 1)),
]
ORDERS: dict[str, list[Variant]] = {  # by kind
    "text": [()],
    "image": [(Choice("order", "image first", {}),), (Choice("order", "all words first", None),)],
    "both": [
        (Choice("order", "image first", {"image_at": 0}),),
        (Choice("order", "text first", {"image_at": -1}),),
        (Choice("order", "all words first", None),),
    ],
}


def framings(presets: Mapping[str, Prompt]) -> list[Variant]:
    """Each prompt with and without the generation prompt, with every system turn and end.

    What two prompts come to alike (`embedding` without its instruction is `chat`) is there once, by the nearer name.
    """
    found: list[Variant] = []
    for name, each in presets.items():
        named = Choice("prompt", name, {"prompt": name}, each)
        generations = [each.generation, not each.generation] if each.chat else [each.generation]
        systems = [each.system, None, *SYSTEMS] if each.chat else [None]
        drawn = [
            Choice("generation prompt", "yes" if drawn else "no", {} if drawn == each.generation else None, drawn)
            for drawn in generations
        ]
        told = [
            Choice("instruction", system or "none", {"instruction": system or ""}, system)
            for system in dict.fromkeys(systems)
        ]
        found += product([named], drawn, told, ENDS)
    own_first = sorted(found, key=lambda each: each[2].does != each[0].does.system)
    distinct: dict[Any, Variant] = {}
    for named, *rest in own_first:
        turns = replace(named.does, system=None, generation=True, full_stop=False)
        distinct.setdefault((turns, *rest), (named, *rest))
    return list(distinct.values())


# ---- What becomes of an image

# Areas: transformers' for Qwen3-VL, qwen-vl-utils' for its patches, and both for Qwen2-VL.
BOUNDS: list[Bounds] = [(65536, 16777216), (4096, 16777216), SERIES_PIXELS, (3136, 12845056)]
RESAMPLING = Image.Resampling


def _sized(pixels: Pixels, patch: int, bounds: Bounds) -> tuple[int, int]:
    return images.target_size((pixels.shape[1], pixels.shape[0]), patch * images.MERGE, *bounds)


def _pillow(how: Any, pixels: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _torch(mode: str, pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Without antialiasing, as OpenCV does it too."""
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    found = interpolate(planes, size=size[::-1], mode=mode, align_corners=False)
    return np.asarray(found[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy())


def _by_28(pixels: Pixels) -> Pixels:
    """What qwen-vl-utils does when nobody tells it the patches' size; processors then resize once more."""
    return _pillow(RESAMPLING.BICUBIC, pixels, _sized(pixels, 14, (4 * 28 * 28, 16384 * 28 * 28)))


def _central(pixels: Pixels) -> Pixels:
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _square(side: int, pixels: Pixels) -> Pixels:
    return _pillow(RESAMPLING.BICUBIC, pixels, (side, side))


def _opened(turned: bool, background: str | None, file: bytes) -> Pixels:
    return np.asarray(upright(file, turned, background))


DECODINGS = [  # `does`: file -> pixels; None is ours
    Choice("decoding", "as a viewer shows it", {}),
    Choice("decoding", "transparency dropped", None, partial(_opened, True, None)),
    Choice("decoding", "not turned as EXIF says", None, partial(_opened, False, "white")),
    Choice("decoding", "not turned, transparency dropped", None, partial(_opened, False, None)),
    Choice("decoding", "transparency on black", None, partial(_opened, True, "black")),
    Choice("decoding", "red and blue swapped", None, lambda file: _opened(True, "white", file)[..., ::-1].copy()),
]
RESIZES = [  # `does`: what comes before ours (pixels -> pixels), or in its place (pixels, size -> pixels)
    Choice("resize", "bicubic, once", {}, (None, None)),
    *(
        Choice("resize", how.name.lower(), None, (None, partial(_pillow, how)))
        for how in (RESAMPLING.BILINEAR, RESAMPLING.LANCZOS, RESAMPLING.NEAREST)
    ),
    *(
        Choice("resize", f"{mode} without antialiasing", None, (None, partial(_torch, mode)))
        for mode in ("bicubic", "bilinear")
    ),
    Choice("resize", "twice, first to multiples of 28", None, (_by_28, None)),
    Choice("resize", "bicubic, of the central square", None, (_central, None)),
    *(
        Choice("resize", f"twice, first squashed to {side}×{side}", None, (partial(_square, side), None))
        for side in (224, 256, 336, 384, 448, 512)
    ),
]
KEPT = 2**28  # bytes
NOISE, WORSE = 1e-6, 10  # of cosine distances: what counts in any case, and how many times the best one's
PLAIN = (RESIZES[0], DECODINGS[0])

# ---- What is read off the states

POOLINGS = [  # `does`: (T, D) states, indices of the content's tokens -> (D,)
    Choice("pooling", "last token", {"pooling": "last"}, lambda states, content: states[-1]),
    Choice("pooling", "mean of the content", {"pooling": "mean"}, lambda states, content: states[content].mean(dim=0)),
    Choice("pooling", "mean of all tokens", None, lambda states, content: states.mean(dim=0)),
    Choice("pooling", "first token", None, lambda states, content: states[0]),
    Choice("pooling", "maximum over tokens", None, lambda states, content: states.max(dim=0).values),
]
NORMS = [
    Choice("final norm", "yes", {"final_norm": True}, True),
    Choice("final norm", "no", {"final_norm": False}, False),
]


class Variants:
    """All of them, of one checkpoint.

    Args:
        prompts: templates to try beside the presets and the checkpoint's own.

    Raises:
        InvalidInput: one that is none.
    """

    def __init__(self, embedder: Embedder, prompts: Iterable[str] = ()) -> None:
        self.embedder = embedder
        published, recipe = embedder.published, embedder.preparer.recipe(Options())
        own_first = sorted(published.prompts, key=lambda name: name != published.name)
        presets = {name: published.prompts[name] for name in own_first}
        self.framings = framings(presets | {text: prompt(text, presets) for text in prompts})
        own = (recipe.min_pixels, recipe.max_pixels), embedder.checkpoint.pixel_bounds
        bounds = [
            Choice("pixels", f"{low:,}…{high:,}", {"min_pixels": low, "max_pixels": high}, (low, high))
            for low, high in dict.fromkeys((*own, *BOUNDS))
        ]
        self.treatments: list[Variant] = list(product(bounds, RESIZES, DECODINGS))
        last = embedder.model.layers
        self._layers: list[Layer] = [*range(last, -1, -1), "attn"]  # of those that fit alike, the first is told
        layers = [Choice("layer", f"{layer} of {last}", {"layer": layer}, layer) for layer in self._layers]
        poolings = [
            replace(each, options={"pooling": "mean"} if ("all" in each.value) == published.whole else None)
            if "mean" in each.value
            else each
            for each in POOLINGS
        ]
        self.readings: list[Variant] = list(product(layers, NORMS, poolings))
        self._kept: dict[Any, Any] = {}
        self._bytes = 0

    def find(
        self,
        inputs: SequenceOf[Input],
        theirs: SequenceOf[Vector],
        least: float,
        known: Iterable[Variant],
        progress: Callable[[Iterable[Any], str], Iterable[Any]],
    ) -> Found:
        """Those that give all these vectors, each to a cosine of `least`; inputs are of one kind.

        Of these only those count that fit about as well as the best: others are near it, and not it.
        `known`: what this side's other inputs were found to be. Prompts and pixels that these have are tried first,
        with everything else; then all prompts, but images as we treat them.
        """
        kind = inputs[0].kind
        chosen = {choice for variant in known for choice in variant}
        first = [each for each in self.framings if chosen.issuperset(each)] or self.framings[:1]
        treatments = [each for each in self.treatments if chosen.issuperset(each)] or self.treatments
        plain = [each for each in self.treatments if each[1:] == PLAIN]
        stages: list[tuple[list[Variant], list[Variant]]] = [(first, treatments), (self.framings, plain)]
        if kind == "text":
            stages = [(self.framings, [()])]
        found = Found()
        for framed, treated in stages:
            passes = [
                framing + order + treatment for framing, order, treatment in product(framed, ORDERS[kind], treated)
            ]
            for one in progress(passes, kind):
                self._try(one, inputs, theirs, least, found)
            if found.variants:
                break
        size = Choice("dimensions", str(len(theirs[0])), {"dimensions": len(theirs[0])})  # as `cosines` compares them
        off = NOISE + WORSE * (1 - max(found.variants.values(), default=0.0))
        found.variants = {(*one, size): cosine for one, cosine in found.variants.items() if 1 - cosine <= off}
        return found

    def _try(
        self,
        one: Variant,
        inputs: SequenceOf[Input],
        theirs: SequenceOf[Vector],
        least: float,
        found: Found,
    ) -> None:
        """One pass, input by input, for as long as a reading of it fits."""
        worst = np.ones(len(self.readings))
        for number, (item, vector) in enumerate(zip(inputs, theirs, strict=True)):
            try:
                sequence = self.sequence(item, one)
            except (
                EmbedError,
                OSError,
                ValueError,
            ):  # no such shape of this template, or Pillow does not read the file
                return
            pixels = sequence.patches.pixels.tobytes() if sequence.patches else b""
            key = hashlib.sha1(sequence.tokens.ids.tobytes() + pixels).digest()
            worst = np.minimum(worst, cosines(self._once(key, partial(self._rows, sequence)), vector))
            if number == 0 and (found.nearest is None or worst.max() > found.nearest[1]):
                found.nearest = one + self.readings[worst.argmax()], float(worst.max())
            if worst.max() < least:
                return
        found.variants |= {one + self.readings[index]: float(worst[index]) for index in np.flatnonzero(worst >= least)}

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _rows(self, sequence: Sequence) -> NDArray[np.float32]:
        """What `readings` read off one pass: (R, D)."""
        model = self.embedder.model
        content = torch.cat([torch.arange(*span, device=model.device) for span in sequence.tokens.content])
        states = model.hidden(pack([sequence], model.device, reuse=False), self._layers)  # (T, D) each
        rows = []
        for layer, norm in product(self._layers, NORMS):
            state = (model.final_norm(states[layer]) if norm.does else states[layer]).float()
            rows += [pooling.does(state, content).cpu() for pooling in POOLINGS]
        return np.asarray(torch.stack(rows).numpy())

    def sequence(self, item: Input, variant: Variant) -> Sequence:
        """An input as a variant draws it. Raises EmbedError."""
        does = {choice.setting: choice.does for choice in variant}
        order = next((choice.value for choice in variant if choice.setting == "order"), "")
        prompt, (close, cut) = replace(does["prompt"], generation=does["generation prompt"]), does["end"]
        if order == "all words first":
            words = {name: getattr(prompt, name).replace("{image}", "") + "{image}" for name in ("image", "both")}
            prompt = replace(prompt, **words)
        patches = None
        if item.image is not None:
            treatment = tuple(choice.value for choice in variant if choice.setting in ("pixels", "resize", "decoding"))
            patches = self._once((item.image, treatment), partial(self._patches, item.image, does))
        tokens = self.embedder.renderer.render(
            prompt, does["instruction"], item.text, patches.tokens if patches else 0, close, -(order == "text first")
        )
        return Sequence(replace(tokens, ids=tokens.ids[: len(tokens.ids) - cut], prefix=0), patches)

    def _patches(self, file: bytes, does: Mapping[str, Any]) -> images.Patches:
        config, patch = self.embedder.config, self.embedder.checkpoint.config.vision_config.patch_size
        (before, instead), opened, bounds = does["resize"], does["decoding"], does["pixels"]
        decoded = opened(file) if opened else images.decode(file, config.max_image_bytes, config.max_image_pixels)
        pixels = before(np.asarray(decoded)) if before else np.asarray(decoded)
        resized = instead(pixels, _sized(pixels, patch, bounds)) if instead else images.resize(pixels, patch, *bounds)
        return images.to_patches(np.ascontiguousarray(resized), patch)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, rows or patches, kept while there is room: many variants come to the same."""
        if key not in self._kept:
            made = make()
            size = getattr(made, "pixels", made).nbytes
            self._bytes += size
            if self._bytes > KEPT:
                self._kept.clear()
                self._bytes = size
            self._kept[key] = made
        return self._kept[key]


def cosines(rows: NDArray[np.float32], vector: Vector) -> NDArray[np.float64]:
    """Of (R, D) rows with a vector, which may have fewer dimensions: then with so many of theirs; 0 if it has more."""
    if rows.shape[1] < len(vector):
        return np.zeros(len(rows))
    # float32 would round a cosine near 1 by as much as Lanczos is from bicubic.
    rows, vector = rows[:, : len(vector)].astype(np.float64), np.asarray(vector, np.float64)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    return np.asarray((rows @ vector) / np.maximum(lengths, np.finfo(np.float32).tiny))
