"""Other people's checkpoint folders: transformers' own vector, or one sentence that names the cause."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers.sentence_transformer.modules import Pooling

from embedder import Embedder, EmbedderConfig, Embedding, EmbedInput, Options, UnsupportedCheckpoint
from embedder.checkpoint import open_checkpoint
from embedder.forward import weights
from tests.layouts import (
    LAYOUTS,
    TEXT,
    Refused,
    adapted,
    adapter_only,
    by_sentence_transformers,
    edit,
    quantized,
    served,
    vectors,
)
from tests.layouts import weights as weights_of
from tests.reference import cosine, png, random_checkpoint

pytestmark = [
    pytest.mark.layouts,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Setting `save_embedding_layers`"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def folder(plain, tmp_path):
    return Path(shutil.copytree(plain, tmp_path / "folder"))


def load(folder: Path, **settings: Any) -> Embedder:
    return Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu", **settings))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_is_served_as_transformers_would_or_refused_in_a_sentence(folder, name):
    right = LAYOUTS[name](folder)
    if isinstance(right, Refused):
        with pytest.raises(UnsupportedCheckpoint, match=right.words) as refusal:
            served(folder)
        assert "\n" not in str(refusal.value)
        assert not re.search(r"KeyError|AttributeError|the fault is the server's", str(refusal.value))
    else:
        for ours, theirs in zip(served(folder), right.reference(folder), strict=True):
            assert cosine(ours, theirs) >= right.least


def test_an_adapter_without_peft_is_refused(folder, monkeypatch):
    adapted(folder)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(
        UnsupportedCheckpoint, match="peft, which merges it, is not installed: install the extra `lora`"
    ):
        load(folder)


def test_fp8_in_bfloat16_is_rounded_once(folder, plain):
    """Its numbers times their scales, in float32, then rounded: what quantising the other way round would not give."""
    quantized(folder)
    (ours,) = vectors(load(folder, dtype="bfloat16"), EmbedInput(text=TEXT))
    (exact,) = vectors(load(folder), EmbedInput(text=TEXT))
    assert 0.98 <= cosine(ours, exact) < 1.0


def test_what_a_checkpoint_says_is_a_default(folder):
    """Settings win over its files, and a request's options over both."""
    prompts = {"own": "Name the colour"}
    by_sentence_transformers(folder, Pooling(128, "mean"), prompts=prompts, default_prompt_name="own")
    embedder = load(folder)
    assert embedder.info["prompt"] == "sentence-transformers"
    recipe = embedder.info["recipe"]
    assert (recipe["pooling"], recipe["normalize"], recipe["system"]) == ("mean", False, "Name the colour")
    assert "own" in embedder.info["prompts"]
    asked = embedder.prepare(
        EmbedInput(text="red", options=Options(pooling="last", prompt="eol", normalize=True))
    ).recipe
    assert (asked.pooling, asked.normalize, asked.system) == ("last", True, None)
    set_otherwise = load(folder, pooling="last", normalize=True, prompt="eol").info["recipe"]
    assert (set_otherwise["pooling"], set_otherwise["normalize"], set_otherwise["system"]) == ("last", True, None)


def test_the_fingerprint_of_an_adapter_is_that_of_what_it_adapts_and_how_not_where(folder, tmp_path):
    beside, alone, base = folder, Path(shutil.copytree(folder, tmp_path / "alone")), tmp_path / "base"
    shutil.copytree(folder, base)
    adapted(beside)
    adapter_only(alone, base)
    before = open_checkpoint(str(alone)).fingerprint
    assert open_checkpoint(str(beside)).fingerprint == before
    edit(alone / "adapter_config.json", lora_alpha=16)
    assert open_checkpoint(str(alone)).fingerprint != before
    edit(alone / "adapter_config.json", lora_alpha=8)
    weights_of(base, lambda stored: {name: tensor * 2 for name, tensor in stored.items()})
    assert open_checkpoint(str(alone)).fingerprint != before


def test_the_id_follows_what_a_prompt_of_its_own_says(folder):
    by_sentence_transformers(folder, Pooling(128, "lasttoken"), prompts={"own": "Name the colour", "other": "Name it"})
    before = load(folder).info
    edit(folder / "config_sentence_transformers.json", prompts={"other": "Name it", "own": "Name the colour"})
    assert load(folder).info["id"] == before["id"]
    edit(folder / "config_sentence_transformers.json", prompts={"other": "Name it", "own": "Name the animal"})
    assert load(folder).info["recipe"] == before["recipe"]
    assert load(folder).info["id"] != before["id"]


# ---- Qwen3-VL-Embedding

SYSTEM = "<|im_start|>system\nRepresent the user's input.<|im_end|>\n"


def by_its_files(folder: Path) -> None:
    """As its repository has them: last token, normalised, nothing about modalities."""
    (folder / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},'
        ' {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},'
        ' {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]'
    )
    (folder / "1_Pooling").mkdir()
    edit(folder / "1_Pooling" / "config.json", word_embedding_dimension=128, pooling_mode_lasttoken=True)


def by_its_template(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    default = "{%- if messages[0].role != 'system' -%}{{- \"" + SYSTEM.replace("\n", "\\n") + '" -}}{%- endif -%}\n'
    (folder / "chat_template.jinja").write_text(default + template)


def by_one_of_its_templates(folder: Path) -> None:
    by_its_template(folder)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 'other' }}")


def by_its_prompts(folder: Path) -> None:
    by_sentence_transformers(
        folder,
        Pooling(128, "lasttoken"),
        processing={"chat_template": {"add_generation_prompt": True}},
        prompts={"default": "Represent the user's input."},
        default_prompt_name="default",
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # transformers leaves one open
@pytest.mark.parametrize("told", [by_its_files, by_its_template, by_one_of_its_templates, by_its_prompts])
def test_an_embedding_checkpoint_is_known_by_what_lies_in_it(folder, told):
    told(folder)
    assert_series(load(folder))


def test_an_embedding_checkpoint_is_known_by_a_setting(folder):
    assert_series(load(folder, prompt="embedding"))


def assert_series(embedder: Embedder) -> None:
    recipe = embedder.info["recipe"]
    assert (embedder.info["prompt"], embedder.info["warnings"]) == ("embedding", ())
    assert (recipe["min_pixels"], recipe["max_pixels"]) == (4096, 1_843_200)
    drawn = embedder.renderer.decode(embedder.prepare(EmbedInput(text="red")).sequence.tokens.ids)
    assert drawn == SYSTEM + "<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n"
    (cut,) = embedder.embed([EmbedInput(text="red", options=Options(dimensions=8))])
    assert isinstance(cut, Embedding)
    assert not cut.warnings


def test_where_none_tells_it_is_served_as_instruct_with_a_warning(plain, tmp_path):
    """Its folder's name tells nothing."""
    folder = shutil.copytree(plain, tmp_path / "Qwen3-VL-Embedding-2B")
    info = load(folder).info
    assert info["prompt"] == "eol"
    assert info["recipe"]["max_pixels"] == 256 * 256
    assert "set EMBED_PROMPT=embedding" in info["warnings"][0]
    assert load(folder, prompt="eol").info["warnings"] == ()


@pytest.mark.parametrize(
    ("instruction", "drawn"),
    [
        ("Find it", "Find it."),
        (" Find it  ", "Find it."),
        ("Find it!", "Find it!"),
        ("找到它。", "找到它。"),
        ("(so)", "(so)"),
        ("1 +", "1 +."),
    ],
)
def test_an_instruction_ends_in_a_full_stop_as_in_its_code(folder, instruction, drawn):
    """Unless it ends in punctuation: `unicodedata.category` begins with P."""
    embedder = load(folder, prompt="embedding")
    tokens = embedder.prepare(EmbedInput(text="red", options=Options(instruction=instruction))).sequence.tokens
    assert embedder.renderer.decode(tokens.ids).startswith(f"<|im_start|>system\n{drawn}<|im_end|>")
    eol = embedder.prepare(EmbedInput(text="red", options=Options(instruction=instruction, prompt="eol")))
    assert f"system\n{instruction}<|im_end|>" in embedder.renderer.decode(eol.sequence.tokens.ids)


def test_its_bounds_reach_the_pixels(folder):
    """A swatch of 64×64 stays as it is: 4 tokens, not the 64 of Instruct's smallest image."""
    edit(folder / "preprocessor_config.json", size={"shortest_edge": 65536, "longest_edge": 16777216})
    small, large = (EmbedInput(image=png(size)) for size in ((64, 64), (1400, 1400)))
    embedder = load(folder, prompt="embedding")
    assert embedder.prepare(small).sequence.patches.tokens == 4
    assert 1024 * 1024 < embedder.prepare(large).sequence.patches.tokens * 32 * 32 <= 1_843_200
    assert load(folder).prepare(small).sequence.patches.tokens == 64


# ---- Templates that fail later


def test_a_template_that_knows_no_system_turn_refuses_the_instruction(folder):
    """The instruction is the caller's to leave out; everything else is served."""
    template = (folder / "chat_template.jinja").read_text()
    refuses = "{%- if messages[0].role == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}\n"
    (folder / "chat_template.jinja").write_text(refuses + template)
    plain, instructed = load(folder).embed_each(
        [EmbedInput(text="red"), EmbedInput(text="red", options=Options(instruction="Name it."))]
    )
    assert isinstance(plain, Embedding)
    assert "does not draw a system turn and a user turn: TemplateError: no system role" in str(instructed)


def test_a_template_that_drops_the_system_turn_refuses_the_instruction(folder):
    template = (folder / "chat_template.jinja").read_text()
    drops = template.replace("in messages -%}", "in messages if message.role != 'system' -%}")
    (folder / "chat_template.jinja").write_text(drops)
    (instructed,) = load(folder).embed_each([EmbedInput(text="red", options=Options(instruction="Name it."))])
    assert "does not draw what it is given (text with an instruction)" in str(instructed)
