"""The survey's colours as two tasks of mteb's: python examples/mteb_colours.py [http://localhost:8001] [every Nth]

Names find their swatches, and swatches their names, among 949. Nothing is downloaded. Needs `pip install mteb`.
"""

import csv
import json
import sys
from pathlib import Path
from urllib.request import urlopen

import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper
from PIL import Image

COLOURS = Path(__file__).parents[1] / "qwen3_vl_embed" / "evaluation" / "data" / "xkcd_colors.csv"
SIDE = 244  # pixels of a swatch


def about(name: str, description: str, category: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        reference="https://xkcd.com/color/rgb/",
        dataset={"path": "none", "revision": "1"},  # it is here
        type="Any2AnyRetrieval",
        category=category,
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=("2010-03-01", "2010-05-03"),
        domains=["Web"],
        task_subtypes=["Image Text Retrieval"],
        license="cc0-1.0",
        annotations_creators="human-annotated",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
    )


class Colours(AbsTaskRetrieval):
    """`every`: of the 949 colours, each so many-th."""

    every = 1
    queried = "text"

    def load_data(self, **_: object) -> None:
        with COLOURS.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))[:: self.every]
        names = [row["name"] for row in rows]
        sides = {
            "text": Dataset.from_dict({"id": names, "text": names, "modality": ["text"] * len(names)}),
            "image": Dataset.from_dict(
                {
                    "id": names,
                    "image": [Image.new("RGB", (SIDE, SIDE), row["hex"]) for row in rows],
                    "modality": ["image"] * len(names),
                }
            ),
        }
        self.queries = {"test": sides.pop(self.queried)}
        self.corpus = {"test": next(iter(sides.values()))}
        self.relevant_docs = {"test": {name: {name: 1} for name in names}}
        self.data_loaded = True


class ColoursT2I(Colours):
    metadata = about("XKCDColoursT2I", "Find the swatch of a colour by its name.", "t2i")


class ColoursI2T(Colours):
    metadata = about("XKCDColoursI2T", "Find the name of a swatch's colour.", "i2t")
    queried = "image"


def main(url: str, every: int = 1, key: str = "any") -> dict[str, dict[str, float]]:
    """Each task's scores, by its name."""
    with urlopen(f"{url}/v1/models") as answer:
        name = json.load(answer)["data"][0]["id"]
    model = OpenAIAPIEncodeWrapper(url, name, key, modalities=["text", "image"])
    tasks = [ColoursT2I(), ColoursI2T()]
    for task in tasks:
        task.every = every
    results = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False).task_results
    return {result.task_name: result.scores["test"][0] for result in results}


if __name__ == "__main__":
    given = sys.argv[1:]
    for task, scores in main(given[0] if given else "http://localhost:8001", int(given[1]) if given[1:] else 1).items():
        figures = (f"{name} {scores[name]:.4f}" for name in ("ndcg_at_10", "recall_at_1", "recall_at_10"))
        print(f"{task:16}", *figures)
