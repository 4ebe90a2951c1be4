"""What the figures are called and how they are written, in the order in which people read them.

The one list that the terminal's table and the page share.
"""

from dataclasses import dataclass

from qwen3_vl_embed.evaluation.resampling import Figure

DIRECTIONS = {"text_to_image": "text → image", "image_to_text": "image → text"}
RANKINGS = {
    "recall_1": ("R@1", ".1%"),
    "recall_5": ("R@5", ".1%"),
    "recall_10": ("R@10", ".1%"),
    "mrr": ("mean reciprocal rank", ".4f"),
    "median_rank": ("median rank", "g"),
}


@dataclass(frozen=True)
class Label:
    """`form` is a format specification."""

    key: str
    words: str
    form: str = ".4f"

    def value(self, figure: Figure) -> str:
        return self._written(figure.value)

    def interval(self, figure: Figure) -> str:
        if figure.low is None or figure.high is None:
            return ""
        return f"{self._written(figure.low)} … {self._written(figure.high)}"

    def chance(self, figure: Figure) -> str:
        return "" if figure.chance is None else self._written(figure.chance)

    def _written(self, value: float) -> str:
        return "none" if value != value else format(value, self.form)


GROUPS: dict[str, tuple[Label, ...]] = {
    "Cosine distance of matched pairs (the benchmark's figures)": (
        Label("matched_mean", "mean", ".6f"),
        Label("matched_median", "median", ".6f"),
        Label("matched_std", "standard deviation", ".6f"),
        Label("matched_min", "least", ".6f"),
        Label("matched_max", "greatest", ".6f"),
    ),
    "Against what does not belong together": (
        Label("unmatched_mean", "unmatched mean distance", ".6f"),
        Label("ratio", "matched / unmatched"),
        Label("auc", "AUC, matched against unmatched"),
        Label("d_prime", "d′"),
    ),
    **{
        f"Retrieval, {arrow}": tuple(
            Label(f"{direction}_{name}", words, form) for name, (words, form) in RANKINGS.items()
        )
        for direction, arrow in DIRECTIONS.items()
    },
    "In one pool of texts and images": tuple(
        label
        for direction, arrow in DIRECTIONS.items()
        for label in (
            Label(f"{direction}_mixed_recall_1", f"R@1, {arrow}", ".1%"),
            Label(f"{direction}_wrong_modality", f"first answer is of the query's own modality, {arrow}", ".1%"),
        )
    ),
    "Asymmetry (text → image less image → text)": (
        Label("asymmetry_recall_1", "R@1", ".1%"),
        Label("asymmetry_mixed_recall_1", "R@1 in one pool", ".1%"),
    ),
    "Colour difference of the first answer (CIEDE2000)": tuple(
        label
        for direction, arrow in DIRECTIONS.items()
        for label in (
            Label(f"{direction}_first_delta_e", f"mean, {arrow}", ".1f"),
            Label(f"{direction}_first_near", f"share ≤ 10, {arrow}", ".1%"),
        )
    ),
    "Cosine distance against CIEDE2000 (Spearman)": (
        Label("spearman_image_to_image", "image, image"),
        Label("spearman_text_to_text", "text, text"),
        Label("spearman_text_to_image", "text, image"),
    ),
    "Read off the vector: CIELAB, or the captions' words (ridge, leave-one-out R²)": (
        Label("probe_text", "text"),
        Label("probe_image", "image"),
    ),
    "Geometry (chance: as many random directions)": (
        Label("anisotropy_text", "anisotropy, text"),
        Label("anisotropy_image", "anisotropy, image"),
        Label("modality_gap", "modality gap"),
        Label("top_share_text", "top principal share, text"),
        Label("top_share_image", "top principal share, image"),
        Label("intrinsic_dimension_text", "intrinsic dimension, text", ".1f"),
        Label("intrinsic_dimension_image", "intrinsic dimension, image", ".1f"),
    ),
}
