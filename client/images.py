"""Base64 text to the bytes of an image file.

A string is always content: no path is opened and no address fetched, whatever it looks like (a JPEG's base64 starts
with `/9j/`). Knows nothing of image formats: the model looks at the bytes, so `image/png` before a JPEG does no harm.
"""

import binascii
import re

from client.errors import InvalidInput

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,30}:", re.IGNORECASE)  # ":" is not in base64's alphabet


def decode_image(value: str, param: str) -> bytes:
    """Decode bare base64, or a `data:image/…;base64,` URL.

    Raises:
        InvalidInput: anything else; `param` names the item.
    """
    payload = _data_url_payload(value, param) if value[:5].lower() == "data:" else value
    if _SCHEME.match(payload):
        raise InvalidInput("Addresses and paths are not opened here: send the image itself, base64-encoded.", param)
    try:
        content = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:  # binascii.Error is one, and so is a character outside ASCII
        raise InvalidInput(
            f"The image is not valid base64 ({str(error).lower()}): use the standard alphabet with padding, "
            "without line breaks.",
            param,
        ) from None
    if not content:
        raise InvalidInput("The image is empty: send the base64 of an image file.", param)
    return content


def _data_url_payload(value: str, param: str) -> str:
    header, comma, payload = value[5:].partition(",")
    media_type, *parameters = header.lower().split(";")
    if media_type.startswith("video/"):
        raise InvalidInput("Video is not supported: single images are served, so send one frame as an image.", param)
    if media_type and not media_type.startswith("image/"):
        raise InvalidInput("The data URL is not an image: send data:image/…;base64,… or bare base64.", param)
    if not comma or "base64" not in parameters:
        raise InvalidInput("The data URL is not base64: send data:image/…;base64,… or bare base64.", param)
    return payload
