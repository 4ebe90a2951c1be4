"""mteb's client of such servers, and whole evaluations with it: the tasks of `examples/mteb_colours.py`.

Run in its own environment beside the project's, as `sdks.py` is.
"""

import mteb_colours
import PIL.Image
from asked import Given, Got, main
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper

EVERY = 15


def evaluate(given: Given) -> Got:
    """The scores of `mteb.evaluate`, by task."""
    return mteb_colours.main(given["url"], EVERY, given["key"])


def encode(given: Given) -> Got:
    """Vectors by both of its forms: `messages`, its default, and `input`."""
    metadata = mteb_colours.ColoursT2I.metadata
    about = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
    images = [{"image": [PIL.Image.open(file) for file in given["images"]]}]
    texts = [{"text": given["texts"]}]
    return {
        "texts": wrapper(given).encode(texts, **about).tolist(),
        "images": wrapper(given).encode(images, **about).tolist(),
        "input": wrapper(given, use_chat_template=False).encode(texts, **about).tolist(),
    }


def wrapper(given: Given, **more: bool) -> OpenAIAPIEncodeWrapper:
    return OpenAIAPIEncodeWrapper(given["url"], given["model"], given["key"], modalities=["text", "image"], **more)


if __name__ == "__main__":
    main({"mteb": encode, "mteb.evaluate": evaluate})
