"""The reference: transformers' own classes, one input at a time, stage by stage. Knows nothing of our packing.

Checkpoints here have random weights, drawn wide enough that different inputs give clearly different vectors: parity is
about plumbing, and plumbing shows best where nothing has collapsed.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import (
    AutoProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from lab.training import architecture

TEXTS = ["red", "very dark teal", "a longer sentence, with punctuation!\nand a second line", "ночь 夜 🎨", "x" * 300]
SIZES = [(244, 244), (64, 64), (1, 1), (100, 300), (333, 97), (640, 480)]


def png(size: tuple[int, int] = (244, 244), seed: int = 0) -> bytes:
    """A smooth random picture: 4x4 random colours enlarged to `size`."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BILINEAR).save(file, "PNG")
    return file.getvalue()


def random_checkpoint(
    folder: Path, *, experts_per_token: int = 0, max_pixels: int = 256 * 256, **text_config: int
) -> Path:
    """A complete checkpoint folder with random weights: the tiny architecture, or the same with four experts."""
    torch.manual_seed(0)
    tokenizer = architecture.train_tokenizer(["red green blue dark light", *TEXTS])
    config = architecture.configuration(tokenizer)
    for name, value in text_config.items():
        setattr(config.text_config, name, value)
    model = with_experts(config, experts_per_token) if experts_per_token else Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.1)
    architecture.save(model, tokenizer, folder)
    preprocessor = folder / "preprocessor_config.json"
    preprocessor.write_text(preprocessor.read_text().replace('"longest_edge": 4096', f'"longest_edge": {max_pixels}'))
    return folder


def with_experts(config, per_token: int) -> Qwen3VLMoeForConditionalGeneration:
    values = config.to_dict()
    experts = {"num_experts": 4, "num_experts_per_tok": per_token, "moe_intermediate_size": 64}
    for part in (values, values["text_config"], values["vision_config"]):
        part.pop("model_type")
    values["text_config"] |= experts
    return Qwen3VLMoeForConditionalGeneration(Qwen3VLMoeConfig(**values))


@dataclass(frozen=True)
class Stages:
    """What transformers computes of one input on the way to its vector."""

    ids: np.ndarray  # (T,)
    positions: np.ndarray  # (3, T)
    pixel_values: np.ndarray | None  # (P, 1536) float32
    hidden: np.ndarray  # (T, D) float32
    content: np.ndarray  # (T,) bool: the tokens that `mean` averages


class Reference:
    """`model`: a transformers Qwen3VLModel (or its MoE twin); prompts are spelled out here, not imported."""

    def __init__(self, folder: Path, model: torch.nn.Module) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = model
        self.bounds = (4096, 256 * 256)

    def text(self, text: str) -> Stages:
        after = "\nSummary above sentence in one word:"
        inputs = self._processed([{"type": "text", "text": text + after}], None)
        ids = inputs["input_ids"][0]
        # Content: what is between "user\n" (3 tokens with <|im_start|>) and the prompt, found by the decoded text.
        pieces = [self.processor.tokenizer.decode(ids[:stop]) for stop in range(1, len(ids) + 1)]
        head = "<|im_start|>user\n"
        ends = np.array([len(piece) for piece in pieces])
        starts = np.concatenate([[0], ends[:-1]])
        content = (starts < len(head) + len(text)) & (ends > len(head))
        return self._stages(inputs, content)

    def image(self, image: Image.Image, before: str | None = None, after: str = "") -> Stages:
        """An image alone, or where `before` and `after` are the text around it; `content` is the image's tokens."""
        low, high = self.bounds
        part = {"type": "image", "image": image, "min_pixels": low, "max_pixels": high}
        images, _ = process_vision_info([{"role": "user", "content": [part]}], image_patch_size=16)
        kind = "image" if before is None else "image and sentence"
        around = [{"type": "text", "text": text} for text in (before, f"{after}\nSummary above {kind} in one word:")]
        inputs = self._processed([*around[: bool(before)], {"type": "image"}, around[1]], images)
        content = inputs["input_ids"][0] == self.model.config.image_token_id
        return self._stages(inputs, content.numpy())

    def _processed(self, content: list[dict], images: list[Image.Image] | None):
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return self.processor(text=[prompt], images=images, do_resize=False, return_tensors="pt")

    @torch.inference_mode()
    def _stages(self, inputs, content: np.ndarray) -> Stages:
        positions, _ = self.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs.get("image_grid_thw")
        )
        hidden = self.model(**inputs).last_hidden_state[0].float().numpy()
        pixels = inputs.get("pixel_values")
        return Stages(
            inputs["input_ids"][0].numpy(),
            positions[:, 0].numpy(),
            None if pixels is None else pixels.numpy(),
            hidden,
            content,
        )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
