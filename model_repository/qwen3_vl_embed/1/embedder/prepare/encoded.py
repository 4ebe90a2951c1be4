"""An image as a string: read where an image is expected, and noticed where a text is.

JSON cannot carry bytes, so an image may come as base64 or as a `data:` URL. Clients send the same strings as texts, and
their letters have a vector too, which means nothing.
"""

import binascii
import re

from ..errors import InvalidInput

SENT_AS_TEXT = (
    "the text is an image: send it to /img/embed, to /v1/embeddings as a data: URL or as an item with image, "
    'or to Triton itself as the input "image"'
)
HEAD = 200  # letters of a text, or of a data: URL before its comma, that are looked at
AROUND = " \t\r\n\"'`<([{"  # what a string may be wrapped in
TO_STANDARD = str.maketrans("-_", "+/")  # base64's other alphabet (RFC 4648, section 5)

# How images begin, by nearly four bytes or more: of random words fewer than one in fifty million does. PNG, JPEG and
# WebP also as they look when bytes that are no UTF-8 were replaced or left out.
SIGNATURE = re.compile(
    rb".{0,3}PNG\r\n\x1a\n|\xff\xd8\xff[\xc0-\xfe]|.{0,6}(JFIF|Exif)\0|GIF8[79]a|RIFF.{1,4}(WEBP|AVI )|BM.{4}\0{4}"
    rb"|II[*+]\0|MM\0[*+]|.{4}ftyp|\0\0[\1\2]\0[\1-\x40]\0|\0\0\0\x0c(JXL |jP  )|8BPS\0\1|\x1aE\xdf\xa3|<svg[ >]|%PDF-",
    re.DOTALL,
)
# One that is the whole text, or with a drawing in it as it stands.
DATA_URL = re.compile(r"data:(image|video)/[^,\s]*,(\S*([\r\n]|\s*$)|\s*<)", re.IGNORECASE)
# Base64 or hexadecimal digits: behind a prefix, or a word that is the whole text or its first line.
WORD = re.compile(
    r"""(?:data:\s?)?[\w.+/;=-]{0,60}(?:;\s)?base64,\s?([\w+/-]{24,})"""
    r"""|(?:b['"])?(?:\\x|0x)?([\w+/-]{24,})={0,2}(?:['"`)>\]}\r\n]|\s*$)""",
    re.ASCII | re.IGNORECASE,
)
OTHERS = re.compile(r"[^\w+/-]", re.ASCII)  # what no such word holds
# str() of Python's bytes.
PRINTED = re.compile(
    r"""b['"](\\x89PNG|\\xff\\xd8\\xff|GIF8[79]a\S*\\x|RIFF\S*\\x|II\*\\x00|MM\\x00\*|BM\S{4,16}(\\x00){4})"""
)

BASE64 = re.compile(rb"[A-Za-z0-9+/]{16}")  # of no image's first 16 bytes: all hold small numbers or colours' bits


def is_image(text: str) -> bool:
    """Whether a text is an image's file: base64 or hexadecimal digits of one, a `data:` URL, or its bytes as letters.

    So is what has more of these letters than words around them: JSON, Markdown, or a tag. A text that mentions one is a
    text: words around a few of its letters, an address, or a page with pictures in it. Takes three microseconds, and
    some milliseconds for a word of a megabyte.
    """
    text = text.lstrip(AROUND)
    head = text[:HEAD]
    if "\0" in head:  # which the file of an image has among its first bytes, and hardly a text
        return bool(SIGNATURE.match(head.encode("latin-1", "replace")))
    if DATA_URL.match(head) or PRINTED.match(head):
        return True
    if (word := WORD.match(head)) and _encodes_an_image(word[1] or word[2]):
        return True
    start = text.rfind("data:", 0, max(0, text.find("base64,")))  # words, then an image
    if start > 0 and text[start - 1].isspace() and is_image(text[start:]):
        return True
    longest = _word_in_the_middle(text)
    return 2 * len(longest) > len(text) and len(longest) >= 24 and _encodes_an_image(longest[:HEAD])


def _word_in_the_middle(text: str) -> str:
    """Of base64's letters or hexadecimal digits; one that is more than half of the text stands there."""
    middle = len(text) // 2
    before, after = (OTHERS.split(half, 1)[0] for half in (text[:middle][::-1], text[middle:]))
    return before[::-1] + after


def _encodes_an_image(word: str) -> bool:
    whole = word[: len(word) // 4 * 4]
    if SIGNATURE.match(binascii.a2b_base64(whole.translate(TO_STANDARD))):
        return True
    try:
        return bool(SIGNATURE.match(bytes.fromhex(whole)))
    except ValueError:
        return False


def image_file(data: bytes) -> bytes:
    """The file of an image that is given as that file, as its base64 or as a `data:image/…;base64,` URL.

    Which of them is never in doubt: base64 has only letters, and no file that is read here begins with 16 of them.

    Raises:
        InvalidInput: a `data:` URL of another kind, or a string that begins like base64 and is none.
    """
    payload = data
    if data[:5].lower() == b"data:":
        about, _, payload = data.partition(b",")
        if len(about) > HEAD or not re.fullmatch(rb"data:(image/[^;]*)?(;[^;]*)*;base64", about, re.IGNORECASE):
            raise InvalidInput("the data: URL is not an image in base64: send data:image/…;base64,…")
    elif not BASE64.match(data):
        return data
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except binascii.Error as error:
        raise InvalidInput(
            f"the image is no image file and no valid base64 ({str(error).lower()}): send the file's bytes, or their "
            "base64 in the standard alphabet with padding, without line breaks"
        ) from None
