"""Inputs that break servers, each with a word of the sentence that it must be answered with; None: it is no mistake.

Rows of the table that `test_images.py` decodes in process and `test_bad_inputs.py` sends through every door. Files are
made by hand where no encoder would write them.
"""

import base64
import json
import struct
import zlib
from io import BytesIO
from itertools import cycle

import numpy as np
from PIL import Image

COLOUR = (200, 100, 50)
LIMIT = 40_000_000  # pixels: the server's default
UNREADABLE = "not an image this server reads"
DAMAGED = "truncated or damaged"
HEADER = "header cannot be read"
TOO_LARGE = "pixels; at most"


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def solid(mode: str, colour, size=(40, 40)) -> Image.Image:
    return Image.new(mode, size, colour)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size=(40, 40), *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """An RGB PNG with more chunks before its pixels, black ones unless others are given."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes((size[0] * 3 + 1) * size[1])) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def without_palette() -> bytes:
    """Which Pillow reads as shades of grey."""
    start, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 3, 0, 0, 0))
    return start + header + chunk(b"IDAT", zlib.compress(bytes(41 * 40))) + end


def tiff(tags: dict[int, int], content: bytes = zlib.compress(bytes(1000))) -> bytes:
    """A grey TIFF of these tags, deflated, whose content lies at byte 8."""
    tags = {256: 40, 257: 40, 258: 8, 259: 8, 262: 1, 277: 1} | tags
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


def gif(size: tuple[int, int], frame: tuple[int, int], frames: int = 1) -> bytes:
    """A GIF of that screen with a frame that is replaced by the background: Pillow makes room for it early."""
    one = b"\x21\xf9\x04\x08\0\0\0\0\x2c" + struct.pack("<HHHH", 0, 0, *frame) + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<HH", *size) + b"\x80\0\0\0\0\0\xff\xff\xff" + one * frames + b";"


def run_length_bmp(moves: int) -> bytes:
    """A BMP of 100×100 pixels whose runs are nothing but moves by nothing."""
    runs = b"\0\2\0\0" * moves
    header = struct.pack("<IiiHHIIiiII", 40, 100, 100, 1, 8, 1, len(runs), 0, 0, 256, 0) + bytes(1024)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(runs), 0, 0, 14 + len(header)) + header + runs


def jpeg(*segments: bytes, count: int = 1, file: bytes | None = None) -> bytes:
    """A JPEG, a small one unless another is given, with more segments in its header."""
    file = file or JPEG
    return file[:2] + b"".join(segments) * count + file[2:]


def no_codes(jpeg: bytes) -> bytes:
    """Ones for a part of its first scan: no Huffman code is all ones (T.81, annex C)."""
    at = jpeg.index(b"\xff\xda") + 400
    return jpeg[:at] + b"\xff\0" * 20 + jpeg[at + 40 :]


def app1(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def scans(count: int) -> bytes:
    """A progressive JPEG with so many scans more than it needs, of ten bytes each."""
    file = encoded(solid("RGB", COLOUR, (1000, 1000)), "JPEG", progressive=True)
    return file[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * count + file[-2:]


def animated(format: str, frames: int = 2) -> bytes:
    """The colour first, then others."""
    others = [solid("RGB", (index % 256, 255, index // 256)) for index in range(frames - 1)]
    return encoded(solid("RGB", COLOUR), format, save_all=True, append_images=others, lossless=True)


def flat_webp(width: int, height: int, colour: tuple[int, int, int] = COLOUR, alpha: int = 128) -> bytes:
    """A lossless WebP of one colour: every prefix code has one symbol, so that no pixel takes a bit; 34 bytes."""
    red, green, blue = colour
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (1, 1), (0, 3), (0, 3)]  # alpha; no transforms, no cache
    fields += [(symbol << 3 | 0b101, 11) for symbol in (green, red, blue, alpha, 0)]
    bits = length = 0
    for value, width_in_bits in fields:
        bits |= value << length
        length += width_in_bits
    data = bits.to_bytes(-(-length // 16) * 2, "little")
    chunks = b"WEBPVP8L" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def bomb(megabytes: int) -> bytes:
    """So many MiB of zeros, deflated: after a full flush (RFC 1951) each MiB is the same bytes again."""
    deflate = zlib.compressobj(9)
    first, more = (deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    adler = (megabytes << 20) % 65521 << 16 | 1
    return first + more * (megabytes - 1) + b"\3\0" + adler.to_bytes(4, "big")


NOISE = Image.effect_noise((200, 200), 50)
PNG, JPEG, BMP = (encoded(solid("RGB", COLOUR), format) for format in ("PNG", "JPEG", "BMP"))
PROGRESSIVE = encoded(NOISE, "JPEG", progressive=True)
HALF_A_PROFILE = b"\xff\xe2\0\x12ICC_PROFILE\0\1\2\0\0"
SMALL_BOMB = zlib.compress(bytes(2**20 - 9), 9)
WEBP = animated("WEBP")
FRAME = WEBP.index(b"ANMF") + 8  # where its first frame says its place and size
EXIF = Image.Exif()
EXIF[0x0112] = 6

IMAGES: dict[str, tuple[bytes, str | None]] = {
    "no image": (b"hello, world", UNREADABLE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "pdf": (b"%PDF-1.7\n", "PDF"),
    "html": (b"<!doctype html><img src='file:///etc/passwd'>", UNREADABLE),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "zip": (b"PK\3\4" + bytes(60), UNREADABLE),
    "psd": (b"8BPS\0\1" + bytes(60), "PSD"),
    "ico": (encoded(solid("RGB", COLOUR), "ICO"), "ICO"),
    "jpeg 2000": (encoded(solid("RGB", COLOUR), "JPEG2000"), "JPEG 2000"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
    "mp4": (b"\0\0\0\x20ftypisom" + bytes(64), "single images are served"),
    "mov": (b"\0\0\0\x14ftypqt  " + bytes(64), "single images are served"),
    "webm": (b"\x1aE\xdf\xa3" + bytes(64), "single images are served"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "single images are served"),
    "jpeg and zip": (JPEG + b"PK\3\4" + bytes(60), None),
    "gif and script": (encoded(solid("RGB", COLOUR), "GIF") + b"/*<script>*/", None),
    "png's first bytes": (PNG[:20], "ends before its pixels"),
    "png at a quarter": (encoded(NOISE)[: len(encoded(NOISE)) // 4], DAMAGED),
    "png at 99 %": (encoded(NOISE)[:-2000], DAMAGED),
    "jpeg at half": (encoded(NOISE, "JPEG")[: len(encoded(NOISE, "JPEG")) // 2], "is cut"),
    "jpeg, codes that are none": (no_codes(PROGRESSIVE), "bad Huffman code"),
    "jpeg, the same behind half a profile": (no_codes(jpeg(HALF_A_PROFILE, file=PROGRESSIVE)), "bad Huffman code"),
    "webp at half": (encoded(NOISE, "WEBP")[: len(encoded(NOISE, "WEBP")) // 2], DAMAGED),
    "png, a wrong checksum": (PNG[:60] + b"\0" + PNG[61:], "wrong checksum"),
    "png, a palette that is not there": (without_palette(), "a palette that is not there"),
    "1×1": (png((1, 1)), None),
    "1×200": (png((1, 200)), None),
    "1×201": (png((1, 201)), "at most 200 times"),
    "4000×1": (png((4000, 1)), "at most 200 times"),
    "the largest": (png((8000, 5000)), None),
    "one row too many": (png((8000, 5001), pixels=b""), TOO_LARGE),
    "png, 12000×12000": (png((12000, 12000), pixels=zlib.compress(bytes(10**6), 9)), TOO_LARGE),
    "png, 2³¹−1 each way": (png((2**31 - 1, 2**31 - 1), pixels=b""), TOO_LARGE),
    "jpeg, 65535×65535": (JPEG.replace(struct.pack(">HH", 40, 40), b"\xff" * 4), TOO_LARGE),
    "gif, 65535×65535": (gif((9, 9), (65535, 65535)), TOO_LARGE),
    "gif without a size": (gif((0, 0), (0, 0)), HEADER),
    "png, a bomb of pixels": (png(pixels=bomb(256)), None),  # what is too much for 40×40 is never inflated
    "png, a bomb of text": (png((40, 40), chunk(b"zTXt", b"a\0\0" + bomb(64))), None),
    "png, many small bombs of text": (png((40, 40), *[chunk(b"zTXt", b"a\0\0" + SMALL_BOMB)] * 100), None),
    "png, a bomb of a profile": (png((40, 40), chunk(b"iCCP", b"a\0\0" + bomb(64))), None),
    "jpeg, 10 MB of exif": (jpeg(app1(b"Exif\0\0" + bytes(65527)), count=160), None),
    "jpeg, 10 MB of exif in small parts": (jpeg(app1(EXIF.tobytes()), count=200_000), "too long to read"),
    "jpeg, broken exif": (jpeg(app1(b"Exif\0\0nonsense")), None),
    "png, broken exif": (png((40, 40), chunk(b"eXIf", b"nonsense")), None),
    "webp, broken exif": (encoded(solid("RGB", COLOUR), "WEBP", exif=b"Exif\0\0nonsense"), None),
    "progressive jpeg": (scans(0), None),
    "progressive jpeg, 100 scans": (scans(100), "scans"),
    "progressive jpeg, 100,000 scans": (scans(10**5), "scans"),
    "jpeg before a film": (JPEG + b"\xff\xda" * 10**5, None),  # what looks like scans is behind its end
    "tiff, a tile of 1 GB": (tiff({322: 2**15, 323: 2**15, 324: 8, 325: 17}), "tiles much larger"),
    "tiff, strips that end early": (tiff({257: 4000, 256: 4000, 273: 8, 278: 4000, 279: 17}), DAMAGED),
    "tiff, 128 of no range": (encoded(Image.fromarray(np.full((40, 40), 128, np.float32)), "TIFF"), "outside 0…1"),
    "tiff, 70000": (encoded(Image.fromarray(np.full((40, 40), 70000, np.int32)), "TIFF"), "signed integers"),
    "bmp, its header cut": (BMP[:20], "ends in its header"),
    "bmp without its last pixels": (BMP[:-100], "last pixels are missing"),
    "tiff of no pixels": (tiff({256: 0}), "none at all"),
    "tiff of no known compression": (tiff({259: 60000}), "compression 60000"),
    "tiff of two 16-bit samples": (tiff({258: 16, 277: 2}), "2 samples a pixel, 16-bit"),
    "tiff of a rare kind": (tiff({262: 32845}), "photometric interpretation 32845"),
    "webp, its first frame cut": (WEBP[: FRAME + 10], "first frame cannot be read"),
    "webp, its first frame off the screen": (
        WEBP[:FRAME] + b"\xff\xff\xff" + WEBP[FRAME + 3 :],
        "first frame cannot be read",
    ),
    "png, a broken profile": (png((40, 40), chunk(b"iCCP", b"a\0\0nonsense")), None),
    "gif, 1,000 frames": (animated("GIF", 1000), None),
    "webp, 100 frames": (animated("WEBP", 100), None),
    "png, 100 frames": (animated("PNG", 100), None),
}

# What takes Pillow long: here for tests that shorten the time that it may take.
ENDLESS = {
    "png, 200,000 chunks": png((40, 40), chunk(b"teSt", b"") * 200_000),
    "jpeg, 300,000 segments": jpeg(b"\xff\xe5\0\2", count=3 * 10**5),
    "jpeg, a megabyte of filling": jpeg(b"\xff", count=2**20),
    "bmp, a million moves": run_length_bmp(10**6),
}

_PNG64 = base64.b64encode(PNG).decode()
_FREE = _PNG64.rstrip("=")
BASE64, DATA_URL, ADDRESS = "not valid base64", "data:image/", "not opened here"
STRINGS: dict[str, tuple[str, str | None]] = {
    "empty": ("", "image is empty"),
    "another alphabet": (_PNG64[:-8] + "!*&^====", BASE64),
    "urlsafe": ("_" + _PNG64[1:], BASE64),
    "without padding": (_FREE[: len(_FREE) // 4 * 4 + 2], BASE64),
    "too much padding": (_FREE + "====", BASE64),
    "padding in the middle": ("QQ==" + _PNG64, BASE64),
    "a line break": (_PNG64[:76] + "\n" + _PNG64[76:], BASE64),
    "a space in front": (" " + _PNG64, BASE64),
    "not ascii": ("é" + _PNG64, BASE64),
    "text": ("a red square", BASE64),
    "path": ("/etc/passwd", BASE64),
    "file": ("file:///etc/passwd", ADDRESS),
    "gopher": ("gopher://127.0.0.1:1/", ADDRESS),
    "metadata service": ("http://169.254.169.254/latest/meta-data/", ADDRESS),
    "address in a data URL": ("data:image/png;base64,http://127.0.0.1/", ADDRESS),
    "data URL in a data URL": ("data:image/png;base64,data:image/png;base64," + _PNG64, ADDRESS),
    "data URL of nothing": ("data:,", DATA_URL),
    "data URL without base64": ("data:image/png," + _PNG64, DATA_URL),
    "data URL without a comma": ("data:image/png;base64", DATA_URL),
    "data URL without an image": ("data:image/png;base64,", "image is empty"),
    "data URL of a page": ("data:text/html;base64," + _PNG64, DATA_URL),
    "data URL of a film": ("data:video/mp4;base64," + _PNG64, "Video is not supported"),
    "data URL of a drawing": ("data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(), "SVG"),
    "a png that says jpeg": ("data:image/jpeg;base64," + _PNG64, None),
    "data URL without a type": ("data:;base64," + _PNG64, None),
    "data URL with a parameter": ("data:image/png;name=a.png;base64," + _PNG64, None),
    "data URL in capitals": ("DATA:IMAGE/PNG;BASE64," + _PNG64, None),
}

TEXTS: dict[str, tuple[str, str | None]] = {
    "a space": (" ", "text is blank"),
    "100,000 line breaks": ("\n" * 10**5, "text is blank"),
    "line breaks around a word": ("\n" * 500 + "red" + "\n" * 500, None),
    "NUL": ("\0", None),
    "control characters": ("".join(map(chr, range(1, 32))), None),
    "right to left": ("\u202eאדום\u202c", None),
    "joined emoji": ("👩‍👩‍👧‍👦🏳️‍🌈", None),
    "a zero-width space": ("\u200b", None),
    "a mark without a letter": ("\u0301", None),
    "a letter with 500 marks": ("e" + "\u0301" * 500, None),
    "a byte order mark": ("\ufeffred", None),
    "no characters": ("\uffff\U0010ffff", None),
    "our own slot": ("\ue000text\ue000", None),
    "a template": ("{content} {text} {image} {{ 7 * 7 }} {% raw %}", None),
    "a megabyte of emoji": ("🎨" * 2**18, "tokens; at most 8192"),
    "a million letters": ("a" * 10**6, "tokens; at most 8192"),
    "more letters than any token holds": ("a" * (128 * 8192 + 1), "too many tokens; at most 8192"),
    "more than the context": ("1" * 5000, "reads at most 4096"),
}

# An image sent as a text: in all the forms that programs make of a file's bytes.
FILES = {"PNG": PNG, "JPEG": JPEG, "animated GIF": animated("GIF"), "TIFF": encoded(NOISE, "TIFF")}
FILES |= {kind: encoded(NOISE, kind) for kind in ("WEBP", "BMP", "AVIF")}
AS_TEXT = "the text is an image: send it to /img/embed"
FORMS = {
    "base64": lambda file: base64.b64encode(file).decode(),
    "base64url without padding": lambda file: base64.urlsafe_b64encode(file).decode().rstrip("="),
    "base64 with line breaks": lambda file: base64.encodebytes(file).decode(),
    "base64 in quotes": lambda file: f' "{base64.b64encode(file).decode()}"\n',
    "str() of base64": lambda file: str(base64.b64encode(file)),
    "a data URL": lambda file: "data:image/png;base64," + base64.b64encode(file).decode(),
    "a data URL in capitals": lambda file: "DATA:IMAGE/PNG;BASE64," + base64.b64encode(file).decode(),
    "a data URL of no kind": lambda file: "data:;base64," + base64.b64encode(file).decode(),
    "a data URL without data:": lambda file: "image/png;base64," + base64.b64encode(file).decode(),
    "words and a data URL": lambda file: "red data:image/jpeg;base64," + base64.b64encode(file).decode(),
    "a data URL with a space": lambda file: "data:image/png; base64," + base64.b64encode(file).decode(),
    "words and one with spaces": lambda file: "red data: image/png;base64, " + base64.b64encode(file).decode(),
    "JSON": lambda file: json.dumps({"image": base64.b64encode(file).decode()}),
    "str() of a list": lambda file: str([{"image": f"data:image/png;base64,{base64.b64encode(file).decode()}"}]),
    "Markdown": lambda file: f"![](data:image/png;base64,{base64.b64encode(file).decode()})",
    "a tag": lambda file: f'<img src="data:image/png;base64,{base64.b64encode(file).decode()}">',
    "words and base64": lambda file: f"red: {base64.b64encode(file).decode()}",
    "behind a byte order mark": lambda file: "\ufeff" + base64.b64encode(file).decode(),
    "hexadecimal digits": lambda file: file.hex(),
    "a database's bytes": lambda file: "\\x" + file.hex(),
    "bytes as Latin-1": lambda file: file.decode("latin-1"),
    "bytes as UTF-8, replaced": lambda file: file.decode("utf-8", "replace"),
}
for (_form, _write), (_kind, _file) in zip(FORMS.items(), cycle(FILES.items()), strict=False):
    TEXTS[f"{_kind} as {_form}"] = (_write(_file), AS_TEXT)
TEXTS |= {
    "str() of bytes": (str(JPEG), AS_TEXT),
    "a data URL of no image": ("data:image/png;base64,aGVsbG8=", AS_TEXT),
    "a drawing as a data URL": ("data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>", AS_TEXT),
    "a film as a data URL": ("data:video/mp4;base64,AAAA", AS_TEXT),
    "a large image": (base64.b64encode(encoded(NOISE.resize((1500, 1500)), "BMP")).decode(), AS_TEXT),
    # and what only looks like one, or speaks of one
    "the beginning of base64": ("iVBORw0KGgo is how the base64 of a PNG begins", None),
    "the beginning of a data URL": ("data:image/png;base64, comes before an image", None),
    "a data URL of a text": ("data:text/plain;base64,aGVsbG8sIHdvcmxk", None),
    "an address": ("https://example.com/red.png", None),
    "a page with an image in it": (
        f'<p>{"red " * 100}<img src="data:image/png;base64,{base64.b64encode(PNG[:200]).decode()}">',
        None,
    ),
    "a style with an image in it": (
        f"a{{background:url(data:image/png;base64,{base64.b64encode(PNG[:200]).decode()})}}" + "b{color:red}" * 30,
        None,
    ),
    "a drawing as it is written": ("<svg xmlns='http://www.w3.org/2000/svg'/>", None),
    "hexadecimal digits of no image": ("d41d8cd98f00b204e9800998ecf8427e", None),
    "base64 of no image": (base64.b64encode(bytes(range(200, 256))).decode(), None),
    "a name of a format": ("GIF89a", None),
    "a word of a format's letters": ("BM25 ranks by the words' frequencies", None),
}

LEAST, WHOLE = "greater than or equal to 8", "valid integer"
OPTIONS: dict[str, tuple[dict, str | None]] = {
    "dimensions 0": ({"dimensions": 0}, LEAST),
    "dimensions -1": ({"dimensions": -1}, LEAST),
    "dimensions 1": ({"dimensions": 1}, LEAST),
    "dimensions 7": ({"dimensions": 7}, LEAST),
    "dimensions 8": ({"dimensions": 8}, None),
    "dimensions D": ({"dimensions": 128}, None),
    "dimensions D+1": ({"dimensions": 129}, "at most 128"),
    "dimensions 1.5": ({"dimensions": 1.5}, WHOLE),
    "dimensions '64'": ({"dimensions": "64"}, WHOLE),
    "dimensions true": ({"dimensions": True}, WHOLE),
    "dimensions 10³⁰": ({"dimensions": 10**30}, "dimensions"),
    "a layer too high": ({"layer": 10**9}, "options.layer"),
    "a layer too low": ({"layer": -(10**9)}, "options.layer"),
    "no such pooling": ({"pooling": "max"}, "pooling"),
    "normalize 1": ({"normalize": 1}, "valid boolean"),
    "a timeout": ({"timeout": 1}, "timeout"),
    "a priority": ({"priority": 1}, "priority"),
    "no such prompt": ({"prompt": "{{ 7 * 7 }}"}, "{content} once"),
    "an instruction that is a template": ({"instruction": "{{ 7 * 7 }}{% include '/etc/passwd' %}"}, None),
    "an instruction of control tokens": ({"instruction": "<|im_end|><|image_pad|>"}, None),
    "an instruction of 20 KB": ({"instruction": "a" * 20_000}, "at most 16384"),
    "our own slot in a prompt": ({"prompt": "\ue000text\ue000 {content}"}, None),
    "a letter that the text's mark melts into": ({"prompt": "e{content}"}, None),
}

INVALID, KIND = "not valid JSON", "must be a string or a list of strings"
BODIES: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", "body is empty"),
    "null": (b"null", "must be a JSON object"),
    "a list": (b'["red"]', "must be a JSON object"),
    "a comma too many": (b'{"input": "red",}', INVALID),
    "single quotes": (b"{'input': 'red'}", INVALID),
    "a comment": (b'{"input": "red" /* red */}', INVALID),
    "something behind it": (b'{"input": "red"} red', INVALID),
    "a byte order mark": (b'\xef\xbb\xbf{"input": "red"}', INVALID),
    "UTF-16": ('{"input": "red"}'.encode("utf-16"), INVALID),
    "half a surrogate pair": (b'{"input": "\\ud800"}', INVALID),
    "bad UTF-8": (b'{"input": "\xff"}', INVALID),
    "a bare line break": (b'{"input": "a\nb"}', INVALID),
    "NaN": (b'{"input": "red", "dimensions": NaN}', INVALID),
    "Infinity": (b'{"input": "red", "dimensions": Infinity}', INVALID),
    "1e999": (b'{"input": "red", "dimensions": 1e999}', INVALID),
    "10,000 lists": (b'{"input": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", INVALID),
    "10,000 objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, INVALID),
    "10,000 openings": (b"[" * 10_000, INVALID),
    "a number": (b'{"input": 1}', KIND),
    "true": (b'{"input": true}', KIND),
    "null for the input": (b'{"input": null}', KIND),
    "an object for the input": (b'{"input": {"text": "red"}}', KIND),
    "token ids": (b'{"input": [101, 102]}', "no token ids"),
    "lists of token ids": (b'{"input": [[101, 102]]}', "no token ids"),
    "nested lists": (b'{"input": [["red"]]}', "nested lists"),
    "null in the list": (b'{"input": ["red", null]}', "strings only"),
    "an empty text": (b'{"input": ""}', "text is empty"),
    "257 items": (json.dumps({"input": ["red"] * 257}).encode(), "between 1 and 256"),
    "no item": (b'{"input": []}', "between 1 and 256"),
    "another endpoint's field": (b'{"content": "red"}', '"input" is missing'),
    "a key twice": (b'{"input": 1, "input": "red"}', None),
}
