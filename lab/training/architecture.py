"""The shape of the tiny checkpoints: configuration, tokenizer, chat template, fresh weights.

Everything here is Qwen3-VL as released, only smaller: the same classes, the same special tokens under the same names,
the same chat format. So whatever loads this folder loads `Qwen/Qwen3-VL-4B-Instruct` too.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

VOCABULARY = 2048
# Qwen's own names. Their ids are this tokenizer's, so nothing may take them from anywhere but the configuration.
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

# 64x64 pixels whatever the image: four language tokens are plenty for one colour, and 244x244 would be 64.
SWATCH_PIXELS = 64 * 64
PATCH = 16
MEAN = STD = [0.5, 0.5, 0.5]
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": MEAN,
    "image_std": STD,
    "size": {"shortest_edge": SWATCH_PIXELS, "longest_edge": SWATCH_PIXELS},
}

# Behaves as Qwen3-VL-Instruct's for system, user and assistant turns of text and images: no default system prompt.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Learn a byte-level BPE of `VOCABULARY` entries from `texts`, with Qwen2's normaliser and pre-tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # every byte is a token: no text is out of vocabulary
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL_TOKENS), initial_alphabet=alphabet)
    )
    learned = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=4096,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def configuration(tokenizer: Qwen2Tokenizer) -> Qwen3VLConfig:
    """The 4B's configuration with every width and depth cut down and the ids of `tokenizer`."""
    id_of = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5_000_000, "mrope_interleaved": True, "mrope_section": [6, 5, 5]
        },
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": id_of("<|endoftext|>"),
        "eos_token_id": id_of("<|im_end|>"),
        "dtype": "float32",
    }  # fmt: skip
    vision = {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_heads": 2,
        "out_hidden_size": 128,
        # 8x8 in place of 48x48: positions are interpolated from it, and each one gets trained at the sizes served.
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
        "dtype": "float32",
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=True,
        architectures=["Qwen3VLForConditionalGeneration"],
        dtype="float32",
    )


def save(
    model: Qwen3VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, folder: Path, pixels: int = SWATCH_PIXELS
) -> None:
    """Write the folder as the Hugging Face hub holds a Qwen3-VL: safetensors, tokenizer, preprocessor, template.

    `pixels`: the area to which its images are brought.
    """
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors writes 0600, which a container's user could not read
    tokenizer.save_pretrained(folder)
    preprocessor = PREPROCESSOR | {"size": {"shortest_edge": pixels, "longest_edge": pixels}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
