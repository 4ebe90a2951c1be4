"""A terminal that nobody's words can steer: rich's console without markup, and with control characters written out.

File names, captions, checkpoints' paths, a server's answers and Triton's log are others' words. Escape sequences in
them could recolour, hide and forge lines, set the title or the clipboard; right-to-left marks could reorder them.
"""

import re
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

# C0 but for tab and line break, DEL, C1, line separators, marks that override the direction of writing; and what stands
# for bytes that are not UTF-8, which no stream takes.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Console(rich.console.Console):
    """What is printed is text, whatever it holds; styles are given as styles."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that rich writes comes through here, in pieces of text, or of its own control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(written_out(segment.text), segment.style)


def written_out(text: str) -> str:
    """The same with `\\x1b` for an escape character, and so on."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
