"""Docs and docstrings are short sentences in the field's words, by the program that counts them."""

from pathlib import Path

import pytest

from lab import words


@pytest.mark.parametrize("path", words.files(), ids=lambda path: str(path.relative_to(words.ROOT)))
def test_sentences_are_short_and_words_are_the_fields_own(path):
    assert list(words.faults(path)) == []


LONG = " ".join(["word"] * words.LONGEST)
PAGE = f"""# {LONG} is a heading

{LONG}. Short; {LONG}
long. `{LONG} {LONG}` is code.

| {LONG} | {LONG} |

- Whoever reads this
- knows nothing.
"""


def test_what_is_counted(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    long, motto, private = words.faults(page)
    assert long.startswith(f"{words.LONGEST + 2} words: Short;")
    assert motto.startswith('"knows nothing"')
    assert private == 'line 8: "Whoever" (better: caller, or who it is)'
    module = tmp_path / "module.py"
    module.write_text(f'"""Short.\n\n{LONG} and more.\n"""\n\nVALUE = """{LONG} {LONG}."""\n')
    [fault] = words.faults(Path(module))
    assert fault.startswith(f"{words.LONGEST + 2} words: word")
