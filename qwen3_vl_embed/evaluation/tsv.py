"""One row in the columns of the colour benchmark's own results file, to be put beside its other models.

The columns are those of color-perception-bench's `benchmark_results.tsv`; distances have six digits, as there.
"""

import csv
from collections.abc import Mapping
from datetime import datetime
from io import StringIO

from qwen3_vl_embed.evaluation.resampling import Figure

COLUMNS = (
    "timestamp", "model_name", "n_colors", "mean_distance", "median_distance", "std_distance", "variance",
    "min_distance", "max_distance",
)  # fmt: skip


def tsv(name: str, pairs: int, figures: Mapping[str, Figure], date: datetime) -> str:
    """A heading and one row. Standard deviation and variance are the population's (divided by N)."""
    mean, median, std, least, most = (
        figures[f"matched_{what}"].value for what in ("mean", "median", "std", "min", "max")
    )
    distances = [f"{value:.6f}" for value in (mean, median, std, std**2, least, most)]
    text = StringIO()
    writer = csv.writer(text, delimiter="\t")  # lines end as the benchmark's do
    writer.writerows([COLUMNS, [date.isoformat(), name, pairs, *distances]])
    return text.getvalue()
