"""What a checkpoint's own files say of how it makes vectors: a recipe's defaults.

There are three kinds. The Qwen3-VL-Embedding series' recipe is in its code, and folders that sentence-transformers
saved describe theirs. All others were made to generate, and get ours (`eol`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .checkpoint import Checkpoint
from .errors import UnsupportedCheckpoint
from .options import ImageOptions
from .prepare.prompts import PROMPTS, Prompt

# Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py: MIN_PIXELS, MAX_PIXELS.
SERIES_PIXELS = (4 * 32 * 32, 1800 * 32 * 32)
OWN = "sentence-transformers"  # the name of a prompt that those files describe
POOLINGS: dict[str, Literal["last", "mean"]] = {"lasttoken": "last", "mean": "mean"}
# Before 5.4 each mode was a flag of its own (sentence_transformers `modules/pooling.py`); without any it was the mean.
FLAGS = {
    **{"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean"},
    **{"pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_lasttoken": "lasttoken"},
    **{"pooling_mode_weightedmean_tokens": "weightedmean"},
}
TRUNCATES = {"padding", "padding_side", "truncation", "max_length"}  # text longer than a limit is refused here, not cut
UNKNOWN = (
    "nothing in its files says that this is a Qwen3-VL-Embedding checkpoint, so it is served as an Instruct one; "
    "if it is one, set EMBED_PROMPT=embedding"
)


@dataclass(frozen=True)
class Published:
    """The defaults of a checkpoint's recipes; a setting that was made wins over each."""

    name: str = "eol"
    prompts: dict[str, Prompt] = field(default_factory=lambda: PROMPTS)  # by name, the default's among them
    pooling: Literal["last", "mean"] = "last"
    whole: bool = False  # `mean` takes the template's tokens too, as sentence-transformers does
    normalize: bool = True
    series: bool = False  # Qwen3-VL-Embedding
    warnings: tuple[str, ...] = ()

    @property
    def options(self) -> ImageOptions:
        return ImageOptions(prompt=self.name, pooling=self.pooling, normalize=self.normalize)


def published(checkpoint: Checkpoint, template: str, setting: str | None) -> Published:
    """Read it; `template` is its chat template, `setting` what `EMBED_PROMPT` says.

    Raises:
        UnsupportedCheckpoint: its sentence-transformers files describe what no recipe can say.
    """
    instruction = PROMPTS["embedding"].system or ""
    files = checkpoint.json("modules.json")
    settings = _object(checkpoint, "config_sentence_transformers.json")
    named = settings.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str | None) for text in named.values()):
        raise UnsupportedCheckpoint(f"{checkpoint.name}: the prompts of config_sentence_transformers.json are no texts")
    prompts = {name: text for name, text in named.items() if text}
    series = setting == "embedding" or instruction in template or instruction in prompts.values()
    if files is None:
        warnings = () if series or setting else (UNKNOWN,)
        return Published("embedding" if series else "eol", series=series, warnings=warnings)
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} is a {kind} of sentence-transformers; served is SentenceTransformer"
        )
    pooling, normalize = _modules(checkpoint, files)
    transformer = _object(checkpoint, "sentence_bert_config.json")
    generation = _generation(checkpoint, transformer)
    if generation is None:  # of a release that knew texts only: it says nothing of how an image is drawn
        if pooling != "last" or (prompts and not series):
            raise UnsupportedCheckpoint(
                f"{checkpoint.name}: its sentence-transformers files are of a release that embedded bare texts and no "
                "images; save it with sentence-transformers 5.4 or later"
            )
        return Published("embedding", pooling=pooling, normalize=normalize, series=True)
    default = settings.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in named):
        raise UnsupportedCheckpoint(f"{checkpoint.name}: config_sentence_transformers.json has no prompt {default!r}")
    own = {name: Prompt(system=text, generation=generation) for name, text in prompts.items() if name not in PROMPTS}
    own[OWN] = Prompt(system=prompts.get(default), generation=generation)
    system = prompts.get(default) or (instruction if instruction in template else None)
    name = "embedding" if system == instruction and generation else OWN
    return Published(name, PROMPTS | own, pooling, whole=pooling == "mean", normalize=normalize, series=series)


def _modules(checkpoint: Checkpoint, files: Any) -> tuple[Literal["last", "mean"], bool]:
    """(pooling, normalize) of modules.json."""
    if not isinstance(files, list) or not all(isinstance(module, dict) for module in files):
        raise UnsupportedCheckpoint(f"{checkpoint.name}: modules.json is no list of modules")
    paths, kinds = [str(module.get("path", "")) for module in files], list(_kinds(checkpoint, files))
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        odd = next((kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")), None)
        why = f"a {odd} module" if odd else f"the modules {', '.join(kinds) or 'none'}"
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: sentence-transformers makes its vectors with {why}; this server pools and normalises"
        )
    if ".." in Path(paths[1]).parts or Path(paths[1]).is_absolute():
        raise UnsupportedCheckpoint(f"{checkpoint.name}: modules.json leads out of its folder, to {paths[1]}")
    if paths[0] not in ("", "."):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name} keeps its model in {paths[0]}; move those files up to modules.json"
        )
    settings = _object(checkpoint, f"{paths[1]}/config.json", needed=True)
    mode = settings.get("pooling_mode") or [mode for flag, mode in FLAGS.items() if settings.get(flag)] or "mean"
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if not isinstance(mode, str) or mode not in POOLINGS:
        named = mode if isinstance(mode, str) else " and ".join(map(str, mode))
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: sentence-transformers pools by {named}; this server by lasttoken or mean"
        )
    return POOLINGS[mode], len(kinds) == 3


def _kinds(checkpoint: Checkpoint, files: list[dict[str, Any]]) -> Iterator[str]:
    for module in files:
        kind = str(module.get("type", ""))
        if not kind.startswith("sentence_transformers."):
            raise UnsupportedCheckpoint(
                f"{checkpoint.name}: modules.json wants code of its own, {kind}, which never runs here"
            )
        if (name := kind.rsplit(".", 1)[1]) != "Dropout":  # which does nothing to a vector
            yield name


def _generation(checkpoint: Checkpoint, transformer: dict[str, Any]) -> bool | None:
    """Whether the generation prompt is drawn; None where the files know no chat messages at all."""
    modalities = transformer.get("modality_config")
    if not isinstance(modalities, dict):
        return None
    wanted = {"method": "forward", "method_output_name": "last_hidden_state"}
    odd = [
        f"{name} by {params.get('method')}"
        for name, params in modalities.items()
        if not isinstance(params, dict) or any(params.get(key) != value for key, value in wanted.items())
    ]
    if "message" not in modalities:
        odd.append("no chat messages")
    if transformer.get("do_lower_case"):
        odd.append("lower-cased texts")
    processing = transformer.get("processing_kwargs") or {}
    if not isinstance(processing, dict) or not all(isinstance(options, dict) for options in processing.values()):
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: sentence_bert_config.json has processing_kwargs of another kind"
        )
    for part, options in processing.items():
        known = {"chat_template": {"add_generation_prompt", "restore_suffix"}, "text": TRUNCATES, "video": set(options)}
        odd += [
            f"{part}.{option} {value!r}" for option, value in options.items() if option not in known.get(part, set())
        ]
    if odd:
        raise UnsupportedCheckpoint(
            f"{checkpoint.name}: sentence_bert_config.json asks for {', '.join(odd)}, which this server does not do"
        )
    return bool((processing.get("chat_template") or {}).get("add_generation_prompt", False))


def _object(checkpoint: Checkpoint, file: str, needed: bool = False) -> dict[str, Any]:
    content = checkpoint.json(file)
    if content is None and not needed:
        return {}
    if not isinstance(content, dict):
        raise UnsupportedCheckpoint(f"{checkpoint.name} has no {file} that holds an object, as modules.json wants")
    return content
