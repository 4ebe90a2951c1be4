"""The one picture: time and peak memory against batch, image size and text length."""

from pathlib import Path

from matplotlib.figure import Figure

SERIES = {
    "batch": "swatches in the batch",
    "side": "side of one square image, pixels",
    "words": "colour names in one text",
}


def growth(result: dict, path: Path) -> None:
    """One panel for each series: seconds, the time at this machine's peak, and MiB at the peak, all logarithmic."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (series, label) in zip(figure.subplots(1, len(SERIES)), SERIES.items(), strict=True):
        rows = [row for row in result["figures"]["rows"] if row["series"] == series]
        values = [row["value"] for row in rows]
        axes.loglog(values, [row["seconds"] for row in rows], "o-", color="C0", label="seconds")
        axes.loglog(values, [row["ceiling_s"] for row in rows], ":", color="C0", label="at the measured peak rate")
        memory = axes.twinx()
        mebibytes = [max(row["peak_bytes"] / 2**20, 0.1) for row in rows]
        memory.loglog(values, mebibytes, "s--", color="C1", label="peak MiB (right)")
        axes.set(xlabel=label, xticks=values, xticklabels=values)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if series == "batch":
            axes.legend(handles=[*axes.lines, *memory.lines], fontsize=8)
    figure.suptitle(f"{result['checkpoint']} on {result['hardware']['device']}")
    figure.savefig(path, dpi=120, metadata={"Software": None})
