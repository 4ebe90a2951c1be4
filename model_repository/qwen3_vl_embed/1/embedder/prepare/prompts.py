"""The prompts: what stands around a text, an image, or both. Each names its source, and when it was published.

A request (or `EMBED_PROMPT`) names one of `PROMPTS`, or brings a template of its own that holds `{content}`.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InvalidInput


@dataclass(frozen=True)
class Prompt:
    """The user turn, in which `{text}` and `{image}` stand for the content, and the system turn if there is one.

    A turn that holds `{text}` twice is for texts alone; the second time is the content.
    """

    text: str = "{text}"
    image: str = "{image}"
    both: str = "{image}{text}"  # in this order, unless a request says where in its text the image stands
    system: str | None = None
    chat: bool = True  # within the checkpoint's chat template
    generation: bool = True  # with that template's generation prompt
    full_stop: bool = False  # an instruction without a punctuation mark at its end gets one

    @property
    def repeats(self) -> bool:
        """Whether it says a text twice, and so is for texts alone."""
        return self.text.count("{text}") == 2

    def instructed(self, instruction: str) -> str:
        """A caller's instruction as it stands in the system turn."""
        stripped = instruction.strip()
        if not self.full_stop or not stripped or unicodedata.category(stripped[-1]).startswith("P"):
            return stripped if self.full_stop else instruction
        return stripped + "."


RELATED = "You are required to assess if the sentence is related to the image.\nBased on"
ONE_WORD = ", output one word:\nCapture the semantics of the"
NO_FUNCTION_WORDS = "Do not use function words, prepositions, or symbols."

PROMPTS = {
    # E5-V (arXiv 2407.12580, July 2024, table 6: 9.2 -> 61.9 without training), within the chat template's generation
    # prompt. E5-V has no prompt for both; this one is ours, in its words.
    "eol": Prompt(
        text="{text}\nSummary above sentence in one word:",
        image="{image}\nSummary above image in one word:",
        both="{image}{text}\nSummary above image and sentence in one word:",
    ),
    # Ours, after FreeRet (naming the task and forbidding function words gained 8 points over E5-V's words) and Color
    # Names in VLMs (2509.22524, September 2025: one word collapses names like "dusty teal" to about 21 words).
    "colour": Prompt(
        text="{text}\nThe text above is the name of a colour. Capture its hue, lightness and saturation. "
        "Do not use function words or symbols. Colour name:",
        image="{image}\nWhat is the exact name of the colour filling this image? Capture its hue, lightness and "
        "saturation. Do not use function words or symbols. Colour name:",
        both="{image}{text}\nWhat is the exact name of the colour above? Capture its hue, lightness and saturation. "
        "Do not use function words or symbols. Colour name:",
    ),
    # FreeRet (arXiv 2509.24621v1, September 2025, section 3.3 and figure 3): the task, what to capture, no function
    # words. It names the two sides of a task, which are a sentence and an image here. It reads the state before the
    # last MLP, so ask for the layer `attn` too.
    "freeret": Prompt(
        text=f"{RELATED} {{text}}{ONE_WORD} sentence.\n{NO_FUNCTION_WORDS}",
        image=f"{RELATED} {{image}}{ONE_WORD} image.\n{NO_FUNCTION_WORDS}",
        both=f"{RELATED} {{image}}{{text}}{ONE_WORD} image and sentence.\n{NO_FUNCTION_WORDS}",
    ),
    # SaHa (arXiv 2508.00955v2, August 2025 and February 2026; the strings are its repository's, Gen2Embed): the task as
    # the system turn, and a representation prompt after the content. It gives that to queries alone. Here both sides
    # are alike, or a text and its image would differ by it. 13.9 -> 43.3 on MMEB (Qwen2-VL-2B, without training).
    "hierarchical": Prompt(
        text="{text}\nRepresent the given text in one word.",
        image="{image}\nRepresent the given image in one word.",
        both="{image}{text}\nRepresent the given text/image in one word.",
        system="Given an image, summarize the provided image in one word. "
        "Given only text, describe the text in one word.",
    ),
    # Echo (arXiv 2402.15449, February 2024, v2 of September 2025): said twice, so that the second time has seen all of
    # it. Pooled there, by `mean`: no gain is known for the last token of a prompt. For texts alone.
    "echo": Prompt(text="Rewrite the sentence: {text}\nThe rewritten sentence: {text}"),
    # The bare content in a user turn: the baseline that E5-V improves on.
    "chat": Prompt(),
    # Qwen3-VL-Embedding (January 2026), src/models/qwen3_vl_embedding.py: the instruction is the system turn, the
    # content is bare. Its `format_model_input` ends an instruction with a full stop.
    "embedding": Prompt(system="Represent the user's input.", full_stop=True),
    # No words and no turns; `<|im_end|>` closes it, so that text and image end in the same token here too.
    "none": Prompt(chat=False),
}
CONTENT = "{content}"


def prompt(value: str, presets: Mapping[str, Prompt] = PROMPTS) -> Prompt:
    """A preset's name, or a template that holds `{content}` once, for texts and images alike, or twice, for texts.

    Raises:
        InvalidInput: it is neither.
    """
    if value in presets:
        return presets[value]
    if value.count(CONTENT) not in (1, 2):
        raise InvalidInput(
            f"options.prompt: name one of {', '.join(presets)}, or give a template that holds {CONTENT} once, "
            "or twice for texts alone"
        )
    if "{text}" in value or "{image}" in value:
        raise InvalidInput(f"options.prompt: a template holds {CONTENT}, not {{text}} or {{image}}")
    text, image, both = (value.replace(CONTENT, slot) for slot in ("{text}", "{image}", "{image}{text}"))
    return Prompt(text, image, both)
