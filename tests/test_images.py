"""Decoding: the colour that a viewer shows, whatever the file; what is no single image is refused with a sentence."""

import re
from time import thread_time

import numpy as np
import pytest
from PIL import Image, ImageCms
from transformers import AutoImageProcessor

from embedder import images
from embedder.errors import InvalidInput
from tests.bad_inputs import COLOUR, ENDLESS, IMAGES, LIMIT, PNG, animated, encoded, png, solid


def decoded(data: bytes) -> Image.Image:
    return images.decode(data, max_bytes=20 * 2**20, max_pixels=LIMIT)


def half_transparent() -> Image.Image:
    return solid("RGBA", (*COLOUR, 128))


def palette(transparent: bool) -> bytes:
    image = solid("P", 1)
    image.putpalette([0, 0, 0, *COLOUR])
    return encoded(image, transparency=1) if transparent else encoded(image)


def grey16(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((40, 40), value, dtype=np.uint16)))


def grey16_keyed(value: int) -> bytes:
    """All of it is the colour that counts as transparent."""
    return encoded(Image.fromarray(np.full((40, 40), value, dtype=np.uint16)), transparency=value)


def ycck() -> bytes:
    """Pillow writes CMYK only, so the planes are turned by hand and the file then says that they are YCCK."""
    luma, blue, red = (band.point(lambda v: 255 - v) for band in solid("RGB", COLOUR).convert("YCbCr").split())
    planes = Image.merge("CMYK", (luma, blue, red, solid("L", 0)))
    data = encoded(planes, "JPEG", quality=95)
    adobe = data.index(b"Adobe") + 11
    return data[:adobe] + b"\2" + data[adobe + 1 :]


def tiff(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values), "TIFF")


ON_WHITE = tuple(round(channel * 128 / 255 + 255 * 127 / 255) for channel in COLOUR)
CASES = {
    "png": (encoded(solid("RGB", COLOUR)), COLOUR, 0),
    "bmp": (encoded(solid("RGB", COLOUR), "BMP"), COLOUR, 0),
    "tiff": (encoded(solid("RGB", COLOUR), "TIFF"), COLOUR, 0),
    "webp lossless": (encoded(solid("RGB", COLOUR), "WEBP", lossless=True), COLOUR, 0),
    "jpeg": (encoded(solid("RGB", COLOUR), "JPEG", quality=95), COLOUR, 3),
    "cmyk jpeg": (encoded(solid("RGB", COLOUR).convert("CMYK"), "JPEG", quality=95), COLOUR, 3),
    "ycck jpeg": (ycck(), tuple(255 - channel for channel in COLOUR), 3),
    "ycbcr tiff": (encoded(solid("RGB", COLOUR).convert("YCbCr"), "TIFF"), COLOUR, 2),
    "lab tiff": (encoded(solid("LAB", (128, 128, 128)), "TIFF"), (119, 119, 119), 3),
    "grey": (encoded(solid("L", 77)), (77,) * 3, 0),
    "one bit, white": (encoded(solid("1", 1)), (255,) * 3, 0),
    "one bit, black": (encoded(solid("1", 0)), (0,) * 3, 0),
    "alpha": (encoded(half_transparent()), ON_WHITE, 1),
    "wholly transparent": (encoded(solid("RGBA", (*COLOUR, 0))), (255,) * 3, 0),
    "alpha webp": (encoded(half_transparent(), "WEBP", lossless=True), ON_WHITE, 1),
    "grey and alpha": (encoded(solid("LA", (0, 128))), (127,) * 3, 1),
    "palette": (palette(False), COLOUR, 0),
    "palette, transparent": (palette(True), (255,) * 3, 0),
    "colour key": (encoded(solid("RGB", COLOUR), transparency=COLOUR), (255,) * 3, 0),
    "gif": (encoded(solid("RGB", COLOUR), "GIF"), COLOUR, 0),
    "animated gif": (animated("GIF"), COLOUR, 0),
    "animated webp": (animated("WEBP"), COLOUR, 0),
    "animated png": (animated("PNG"), COLOUR, 0),
    "16-bit grey, white": (grey16(65535), (255,) * 3, 0),
    "16-bit grey, middle": (grey16(30000), (117,) * 3, 0),
    "16-bit grey, dark": (grey16(300), (1,) * 3, 0),
    "16-bit grey, transparent": (grey16_keyed(30000), (255,) * 3, 0),
    "32-bit grey of 16 bits": (tiff(np.full((40, 40), 30000, dtype=np.int32)), (117,) * 3, 0),
    "float grey": (tiff(np.full((40, 40), 0.5, dtype=np.float32)), (128,) * 3, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_colour_a_viewer_shows(name):
    data, colour, tolerance = CASES[name]
    image = decoded(data)
    assert (image.mode, image.size) == ("RGB", (40, 40))
    assert np.abs(np.asarray(image).astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)).resize((50, 30))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition that the tag undoes
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(np.asarray(decoded(encoded(stored, exif=exif))), np.asarray(upright))


def wide_gamut_profile() -> bytes:
    """A display profile that is not sRGB: sRGB's own with red and blue primaries swapped."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.find(b"rXYZ"), data.find(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data.replace(b"s\0R\0G\0B", b"s\0w\0a\0p"))


def test_icc_profiles_are_honoured():
    assert decoded(encoded(solid("RGB", COLOUR), icc_profile=wide_gamut_profile())).getpixel((0, 0)) == COLOUR[::-1]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decoded(encoded(solid("RGB", COLOUR), icc_profile=srgb)).getpixel((0, 0)) == COLOUR
    assert decoded(encoded(solid("RGB", COLOUR), icc_profile=b"nonsense")).getpixel((0, 0)) == COLOUR


def test_a_profile_and_alpha_together():
    data = encoded(half_transparent(), icc_profile=wide_gamut_profile())
    assert np.abs(np.array(decoded(data).getpixel((0, 0))) - ON_WHITE[::-1]).max() <= 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_or_a_sentence(name):
    """And neither takes long."""
    data, sentence = IMAGES[name]
    started = thread_time()
    if sentence is None:
        patches = images.to_patches(images.resize(decoded(data), 16, 4096, 4096), 16)
        assert patches.pixels.shape == (patches.grid[0] * patches.grid[1], 16 * 16 * 3)
    else:
        with pytest.raises(InvalidInput, match=re.escape(sentence)):
            decoded(data)
    assert thread_time() - started < 3


@pytest.mark.parametrize("name", ENDLESS)
def test_what_takes_too_long_is_given_up(name, monkeypatch):
    monkeypatch.setattr(images, "HEADER_SECONDS", 0.05)
    monkeypatch.setattr(images, "DECODE_SECONDS", 0.05)
    started = thread_time()
    with pytest.raises(InvalidInput, match="too long to read"):
        decoded(ENDLESS[name])
    assert thread_time() - started < 0.5


def test_size_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InvalidInput, match="9000×9000 pixels; at most 10000000"):
        images.decode(png((9000, 9000), pixels=b""), 10**7, 10**7)
    with pytest.raises(InvalidInput, match="bytes; at most 10"):
        images.decode(PNG, 10, 10**7)


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((244, 244), (65536, 2**20), (256, 256)),  # the benchmark's swatch; 252 would be patch 14
        ((1, 1), (65536, 2**20), (256, 256)),
        ((64, 64), (4096, 2**20), (64, 64)),
        ((1, 200), (65536, 2**20), None),
        ((4000, 3000), (65536, 2**20), None),
        ((10, 1000), (4096, 4096), (32, 128)),  # qwen-vl-utils alone would ask Pillow for a width of zero
        ((1000, 10), (4096, 4096), (128, 32)),
        ((200, 1), (4096, 4096), None),
        ((333, 97), (4096, 4096), None),
    ],
)
def test_resized_once_within_the_bounds(size, bounds, expected):
    image = images.resize(solid("RGB", COLOUR, size), 16, *bounds)
    assert all(side % 32 == 0 for side in image.size)
    assert image.width * image.height <= bounds[1]
    assert expected is None or image.size == expected
    assert image.getpixel((5, 5)) == COLOUR


def test_every_shape_has_a_size():
    """Reduced images keep the bound; enlarged ones may pass it by qwen-vl-utils' rounding up to multiples of 32."""
    for side in range(1, 200, 7):
        for size in ((1, side), (side, 1), (5, 5 * side), (40, 20 * side)):
            width, height = images.resize(solid("RGB", COLOUR, size), 16, 4096, 4096).size
            assert width % 32 == height % 32 == 0
            assert 2048 <= width * height <= (4096 if size[0] * size[1] > 4096 else 200 * 32 * 32)


def test_patches_are_transformers_patches():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))
    processor = AutoImageProcessor.from_pretrained("tests/data/configs/Qwen3-VL-4B-Instruct")
    expected = processor(images=[image], do_resize=False, return_tensors="np")
    patches = images.to_patches(image, 16)
    assert expected["image_grid_thw"].tolist() == [[1, *patches.grid]]
    assert patches.tokens == 15
    ours = patches.pixels.reshape(-1, 1, 256, 3).transpose(0, 3, 1, 2) / 127.5 - 1  # channel first, one frame
    np.testing.assert_allclose(np.repeat(ours, 2, axis=2).reshape(60, -1), expected["pixel_values"], atol=1e-6)


def test_all_grey_levels_stay_apart():
    levels = [images.to_patches(images.resize(solid("L", v).convert("RGB"), 16, 4096, 4096), 16) for v in range(256)]
    assert [int(p.pixels.min()) for p in levels] == [int(p.pixels.max()) for p in levels] == list(range(256))
