"""The tables of the README and of docs/, as Markdown, from the results. One function for each block."""

import re
from collections.abc import Callable, Iterable

from lab.benchmarks.fleets import RATES, Case, cases
from lab.benchmarks.targets import GPU, TARGETS, Key

Results = dict[Key, dict]
Rows = Iterable[Iterable[object]]
NUMBER = re.compile(r"[\d.,e+]*( ?[%×s])?")
MANY = 64  # GPUs
LATENCIES = ("requests_per_s", "p50_ms", "p95_ms", "p99_ms")


def markdown(head: str, rows: Rows) -> str:
    """`head` names the columns, divided by bars; a column that holds only numbers is aligned to the right."""
    names, body = head.split("|"), [[str(cell) for cell in row] for row in rows]
    if not body:
        return "Not measured yet.\n"
    rules = ["---:" if all(map(NUMBER.fullmatch, column)) else "---" for column in zip(*body, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in [names, rules, *body])


def number(value: float) -> str:
    """Three digits, thousands with commas."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def of(results: Results, program: str) -> list[tuple[str, dict]]:
    """(checkpoint and device, figures) of every result of a program."""
    mine = [(key[1], each) for key, each in results.items() if key[0] == program]
    return [(f"{checkpoint}, {each['hardware']['device']}", each["figures"]) for checkpoint, each in mine]


def targets(results: Results) -> str:
    return markdown("where|what|at least|measured|", (each.cells(results) for each in TARGETS))


def short(results: Results) -> str:
    """The targets of speed that were measured, for the README."""
    rows = [each.cells(results) for each in TARGETS if each.in_readme and each.value(results) is not None]
    return markdown("where|what|measured|asked", ((row[0], row[1], row[3], row[2]) for row in rows))


def passes(results: Results) -> str:
    """On a GPU; first what a large product reaches there."""
    if not (rows := on_gpu(results, "rows")):
        return markdown("", [])
    ceiling, device = number(results[GPU]["ceiling"]["matmul_flops"] / 1e12), results[GPU]["hardware"]["device"]
    return markdown(
        f"{device}|batch|tokens each|the pass alone: items/s|from files and strings: items/s|TFLOP/s|MFU",
        [("8192³ product", "", "", "", "", ceiling, "100%"), *map(_pass, rows)],
    )


def _pass(row: dict) -> tuple[str, ...]:
    rates = (row["tokens"] / row["batch"], row["forward_per_s"], row["items_per_s"], row["flops"] / 1e12)
    return row["kind"], str(row["batch"]), *map(number, rates), f"{row['mfu']:.0%}"


def on_gpu(results: Results, name: str) -> list[dict]:
    """Of what `gpu_check` found; a run that was cut off has less."""
    return results[GPU]["figures"].get(name, []) if GPU in results else []


def split(results: Results) -> str:
    """Shares of a full pass' time, and the picture that `table` draws of them."""

    def cells(row: dict) -> tuple[object, ...]:
        return row["what"], row["items"], number(1e3 * row["seconds"]), *(f"{share:.0%}" for _, share in shares(row))

    rows = on_gpu(results, "split")
    names = "|".join(name for row in rows[:1] for name, _ in shares(row))
    table = markdown(f"a pass|inputs|ms|{names}", map(cells, rows))
    return table + (f"\n![Where a pass' time goes](../lab/benchmarks/results/{picture(GPU)})\n" if rows else "")


def shares(row: dict) -> list[tuple[str, float]]:
    """Of a row of `split`: each part of its time, the last in no kernel (none where the profiler made it longer)."""
    parts, busy = row["parts"], sum(row["parts"].values())
    whole = max(row["seconds"], busy)
    return [*((name, took / whole) for name, took in parts.items()), ("no kernel", 1 - busy / whole)]


def odd(results: Results) -> str:
    """Lines of `gpu_check` that are not as expected."""

    def cells(check: dict, line: dict) -> tuple[str, ...]:
        value = line["value"] if isinstance(line["value"], str) else number(line["value"])
        return f"{check['number']} {check['title']}", line["what"], value, line["expected"], line["verdict"]

    checks = on_gpu(results, "checks")
    rows = [cells(check, line) for check in checks for line in check["figures"] if line["verdict"] in ("SLOW", "FAIL")]
    return "Nothing.\n" if checks and not rows else markdown("check|line|measured|expected|", rows)


def forward(results: Results) -> str:
    def cells(row: dict) -> tuple[object, ...]:
        rates = (row["tokens"] / row["batch"], row["items_per_s"], row["tokens_per_s"], row["flops"] / 1e12)
        return row["kind"], row["batch"], *map(number, rates), f"{row['mfu']:.0%}"

    rows = ((where, *cells(row)) for where, figures in of(results, "forward") for row in figures["rows"])
    return markdown("checkpoint|kind|batch|tokens each|items/s|tokens/s|TFLOP/s|MFU", rows)


def count(results: Results) -> str:
    """Bytes are an input's."""

    def cells(row: dict) -> tuple[object, ...]:
        kinds = ("products", "attention", "elementwise")
        kernels = (str(row[f"{kind}_kernels"]) for kind in kinds)
        return row["case"], *kernels, *(number(row[f"{kind}_bytes"] / 1e9) for kind in kinds), number(row["host_ms"])

    rows = (cells(row) for _, figures in of(results, "count") for row in figures["rows"])
    head = "a pass of|kernels: products|attention|elementwise|GB an input: products|attention|elementwise|host ms"
    return markdown(head, rows)


def peers(results: Results) -> str:
    def cells(figures: dict, name: str, row: dict) -> tuple[str, ...]:
        least = figures["cosines"].get(name)
        cosines = "{texts:.5f}, {images:.5f}".format(**least) if least else ""
        return name, number(row["items_per_s"]), f"{row['times_ours']:.2f}×", cosines

    rows = (
        (where, *cells(figures, name, row))
        for where, figures in of(results, "peers")
        for name, row in figures["contenders"].items()
    )
    return markdown("checkpoint|who|inputs/s|takes, of ours|least cosine to ours: texts, images", rows)


def replay(results: Results) -> str:
    ways = ("plan_s", "ours_s", "ours_batched_s")
    rows = (
        (where, each["requests"], *(f"{each[way]:.3g} s" for way in ways))
        for where, figures in of(results, "serve")
        if (each := figures.get("replay"))
    )
    return markdown("checkpoint|requests|plain service, singly|ours, singly|ours, by 64", rows)


def loops(results: Results) -> str:
    """Closed loops, Triton alone, open loops."""
    rows = (
        (where, how, row["service"], *(number(row[name]) for name in LATENCIES))
        for where, figures in of(results, "serve")
        for how, row in _loads(figures)
    )
    return markdown("checkpoint|load|service|requests/s|p50 ms|p95 ms|p99 ms", rows)


def _loads(figures: dict) -> list[tuple[str, dict]]:
    """(how hard, row)"""
    load, triton = figures.get("load", {}), figures.get("triton", [])
    alone = [row | {"service": "Triton alone"} for row in triton if "p50_ms" in row]
    closed = [(f"{row['callers']} callers", row) for row in [*load.get("closed", []), *alone]]
    return closed + [(f"{row['share_of_peak']:.0%} of its peak, at random", row) for row in load.get("open", [])]


def growth(results: Results) -> str:
    """The table, and under it the plots that `table` draws."""

    def cells(row: dict) -> tuple[object, ...]:
        return row["series"], row["value"], row["tokens"], f"{row['seconds']:.3g}", number(row["peak_bytes"] / 2**20)

    rows = ((where, *cells(row)) for where, figures in of(results, "growth") for row in figures["rows"])
    table = markdown("checkpoint|series|value|tokens each|seconds|peak MiB", rows)
    measured = [key for key in results if key[0] == "growth"]
    return table + "".join(f"\n![{key[1]}, {key[2]}](../lab/benchmarks/results/{picture(key)})\n" for key in measured)


def picture(key: Key) -> str:
    """The plot's file, beside its result."""
    return f"{'-'.join(key)}.png"


def overload(results: Results) -> str:
    def cells(kind: dict, row: dict) -> tuple[str, ...]:
        rates = (
            f"{number(row['rate'])} ({row['times']:.2g}×)",
            number(row["goodput_per_s"]),
            f"{row['share_of_peak']:.2f}",
        )
        answers = ", ".join(f"{count:,} × {status}" for status, count in row["answers"].items())
        memory = " → ".join(map(number, row["memory_mib"]))
        return kind["kind"], *rates, answers, _latencies(row["good"]), _latencies(row["refused"]), memory

    rows = (
        (where, *cells(kind, row))
        for where, figures in of(results, "overload")
        for kind in figures["kinds"]
        for row in kind["open"]
    )
    head = "checkpoint|what|arrivals/s (of the peak)|goodput/s|share of the peak|answers"
    return markdown(f"{head}|200: p50, p99 ms|429: p50, p99 ms|memory MiB", rows)


def _latencies(row: dict) -> str:
    return "" if row["p50_ms"] is None else f"{number(row['p50_ms'])}, {number(row['p99_ms'])}"


def soak(results: Results) -> str:
    """A row for each run, and what was held."""
    runs = of(results, "soak")
    halves = ((*each["requests_per_s"], *each["p99_ms"]) for _, each in runs)
    totals = (
        (where, f"{each['requests']:,}", number(each["minutes"]), *map(number, half))
        for (where, each), half in zip(runs, halves, strict=True)
    )
    head = "checkpoint|requests|minutes|requests/s: first half|second|p99 ms: first half|second"
    rows = (
        (where, row["what"], *(number(row[name]) for name in ("first", "last", "most", "per_hour")))
        for where, figures in runs
        for row in figures["held"]
    )
    return (
        markdown(head, totals)
        + "\n"
        + markdown("checkpoint|what|after the warm-up|at the end|at most|an hour adds", rows)
    )


def sizing(results: Results) -> str:
    """What was simulated beside what was measured."""

    def cells(row: dict) -> tuple[str, ...]:
        names = ("per_s", "p50_ms", "p99_ms")
        found = (f"{number(row['simulated'][n])}, {number(row['measured'][n])} ({row['ratio'][n]:.2f})" for n in names)
        return f"{row['share']:.0%}", f"{row['requests']:,}", *found

    rows = ((where, *cells(row)) for where, figures in of(results, "sizing") for row in figures["rows"])
    head = "checkpoint|arrivals, of the capacity|requests|requests/s: simulated, measured (ratio)"
    return markdown(f"{head}|p50 ms|p99 ms", rows)


def fleets(results: Results) -> str:
    """The 4B, up to 10⁹ images."""

    def cells(case: Case) -> tuple[str, ...]:
        hours = 1e9 / case.times.capacity / 3600
        figures = (1e3 * case.times.seconds(1), case.times.capacity, hours / 1000, hours, hours / MANY)
        return case.gpu, case.images, case.basis, *map(number, figures), *(case.gpus(rate) for rate in RATES)

    counts = "|".join(f"GPUs for {rate:,}/s" for rate in RATES)
    head = f"GPU|images|basis|ms alone|images/s at most|GPU-hours: 10⁶|10⁹|hours of 10⁹ on {MANY}|{counts}"
    return markdown(head, map(cells, cases(results)))


def machines(results: Results) -> str:
    def cells(each: dict) -> tuple[object, ...]:
        hardware, versions, ceiling = each["hardware"], each["versions"], each["ceiling"]
        rates = f"{number(ceiling['matmul_flops'] / 1e12)} TFLOP/s, {number(ceiling['copy_bytes'] / 1e9)} GB/s"
        device = f"{hardware['device']}, {hardware['processor']} × {hardware['cores']}"
        packages = f"{versions['torch']}, {versions['transformers']}"
        return f"`{each['command']}`", each["date"], each["commit"], device, packages, rates

    rows = (cells(each) for each in results.values())
    return markdown("command|date|commit|machine|torch, transformers|matrix products, copies", rows)


BLOCKS: dict[str, Callable[[Results], str]] = {
    each.__name__: each
    for each in (
        *(targets, short, passes, split, odd, forward, count, peers, replay, loops),
        *(growth, overload, soak, sizing, fleets, machines),
    )
}
OWN = {"serve": (replay, loops)}  # the tables of a program, where it is not one of its own name


def told(key: Key, result: dict) -> str:
    """One run's own tables, and the targets that it measured."""
    results = {key: result}
    reached = [short] * any(each.value(results) is not None for each in TARGETS)
    return "\n".join(block(results) for block in [*(OWN[key[0]] if key[0] in OWN else [BLOCKS[key[0]]]), *reached])
