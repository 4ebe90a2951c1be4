"""mteb's client of such servers, and a whole evaluation with it: for each colour's name, its swatch among all.

Run in its own environment beside the project's, as `sdks.py` is. `folder` holds a PNG for each colour, named by it.
"""

from pathlib import Path

import mteb
import PIL.Image
from asked import Given, Got, main
from datasets import Dataset, Image
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper


class Colours(AbsTaskRetrieval):
    """Text to image, as mteb's Flickr30k task is."""

    folder: Path
    metadata = TaskMetadata(
        name="ColoursT2I",
        description="Find the swatch of a colour by its name.",
        reference=None,
        dataset={"path": "none", "revision": "1"},
        type="Any2AnyRetrieval",
        category="t2i",
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=("2026-01-01", "2026-01-01"),
        domains=["Web"],
        task_subtypes=["Image Text Retrieval"],
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
    )

    def load_data(self, **_: object) -> None:
        files = sorted(self.folder.glob("*.png"))
        names = [file.stem for file in files]
        modality = ["image"] * len(files)
        corpus = Dataset.from_dict(
            {"id": [f"d-{name}" for name in names], "image": [*map(str, files)], "modality": modality}
        )
        queries = Dataset.from_dict(
            {"id": [f"q-{name}" for name in names], "text": names, "modality": ["text"] * len(names)}
        )
        self.corpus = {"test": corpus.cast_column("image", Image())}
        self.queries = {"test": queries}
        self.relevant_docs = {"test": {f"q-{name}": {f"d-{name}": 1} for name in names}}
        self.data_loaded = True


def evaluate(given: Given) -> Got:
    """The scores of `mteb.evaluate`."""
    model = wrapper(given)
    task = Colours()
    task.folder = Path(given["folder"])
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    scores = result.task_results[0].scores["test"][0]
    return {name: scores[name] for name in ("ndcg_at_10", "recall_at_1", "recall_at_10")}


def encode(given: Given) -> Got:
    """Vectors by both of its forms: `messages`, its default, and `input`."""
    about = {"task_metadata": Colours.metadata, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
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
