"""The table and the picture of `length_extrapolation.py`, from its CSV."""

from pathlib import Path
from statistics import mean, stdev

from _record import markdown
from matplotlib import rc_context
from matplotlib.figure import Figure

SOFTMAX, BASELINE = "softmax", "softmax + QK-norm + log N"

# Gao, Spratling, arXiv 2501.13428, as reported by an account of the version of ICML 2026: GPT-2
# small with RoPE, 124 million parameters, 10.2 billion tokens of FineWeb, trained at 1024 tokens;
# validation loss in nats per token at 1, 2, 4 and 8 times that
PUBLISHED = {
    "softmax": (3.19, 4.17, 5.45, 6.28),
    "softplus": (3.19, 4.13, 5.30, 5.94),
    "softplus_reweighted, p = 3": (3.18, 4.24, 5.41, 6.30),
    "softplus_reweighted, p = 15": (3.19, 3.19, 3.23, 3.32),
    "sigmoid": (3.19, 7.46, 11.84, 14.50),
    "ReLU": (3.21, 6.27, 8.50, 10.35),
}

Lines = list[dict[str, str]]


def values(lines: Lines, label: str, factor: int, column: str) -> list[float]:
    """A measure of one row at one multiple of the training length, for each seed."""
    return [float(line[column]) for line in lines if _is(line, label, factor)]


def _is(line: dict[str, str], label: str, factor: int) -> bool:
    return line["attention"] == label and int(line["factor"]) == factor


def _with_spread(found: list[float], digits: int) -> str:
    spread = f" ± {stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):.{digits}f}{spread}"


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    print(markdown(header, rows), end="\n\n")


def print_report(lines: Lines, labels: list[str]) -> None:
    """Print Markdown: loss, passkeys, what the baseline explains, and the published figures."""
    labels = [label for label in labels if any(x["attention"] == label for x in lines)]
    factors = sorted({int(line["factor"]) for line in lines})
    lengths = {int(line["factor"]): line["length"] for line in lines}
    head = [f"{lengths[factor]} ({factor}x)" for factor in factors]
    counts = {label: len(values(lines, label, factors[0], "loss")) for label in labels}
    print("Loss in nats per byte on held-out text, mean and standard deviation over seeds:\n")
    _print_table(
        ["attention", "seeds", *head],
        [
            [
                label,
                str(counts[label]),
                *(_with_spread(values(lines, label, factor, "loss"), 3) for factor in factors),
            ]
            for label in labels
        ],
    )
    print("Passkeys found, per cent, mean and standard deviation over seeds:\n")
    _print_table(
        ["attention", *head],
        [
            [label]
            + [
                _with_spread([100 * x for x in values(lines, label, factor, "passkey")], 0)
                for factor in factors
            ]
            for label in labels
        ],
    )
    _print_shares(lines, [x for x in labels if x not in (SOFTMAX, BASELINE)], factors)
    print("Published (another model, data and budget; only the directions compare):\n")
    _print_table(
        ["attention", "1024 (1x)", "2048 (2x)", "4096 (4x)", "8192 (8x)"],
        [[label, *(f"{loss:.2f}" for loss in row)] for label, row in PUBLISHED.items()],
    )


def _print_shares(lines: Lines, labels: list[str], factors: list[int]) -> None:
    """How much of a row's gain over softmax the baseline has too, over the seeds of all three."""
    rows = []
    for factor in [factor for factor in factors if factor >= 8]:
        for label in labels:
            losses = [
                {line["seed"]: float(line["loss"]) for line in lines if _is(line, name, factor)}
                for name in (SOFTMAX, BASELINE, label)
            ]
            seeds = set.intersection(*(set(found) for found in losses))
            softmax, baseline, own = (mean(found[seed] for seed in seeds) for found in losses)
            share = (softmax - baseline) / (softmax - own) if own < softmax else None
            words = "no gain" if share is None else "all" if share >= 1 else f"{share:.0%}"
            gains = [f"{softmax - own:.3f}", f"{softmax - baseline:.3f}"]
            rows.append([f"{factor}x", label, str(len(seeds)), *gains, words])
    print("Gain over softmax in nats per byte, and the share of it that the baseline explains:\n")
    _print_table(["length", "attention", "seeds", "its gain", "the baseline's", "explained"], rows)


def save_plot(lines: Lines, labels: list[str], path: Path) -> None:
    """Loss and passkeys over the test length; a band spans the seeds."""
    figure = Figure(figsize=(11, 4.8))
    panels = figure.subplots(1, 2)
    factors = sorted({int(line["factor"]) for line in lines})
    shown = [label for label in labels if any(x["attention"] == label for x in lines)]
    for axes, column, title in zip(
        panels, ("loss", "passkey"), ("loss, nats per byte", "share of passkeys found"), strict=True
    ):
        for label, marker in zip(shown, "osD^vP*Xph", strict=False):
            found = [values(lines, label, factor, column) for factor in factors]
            means = [mean(x) for x in found]
            (line,) = axes.plot(factors, means, marker=marker, markersize=5, label=label)
            axes.fill_between(
                factors,
                [min(x) for x in found],
                [max(x) for x in found],
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(factors, [f"{factor}x" for factor in factors])
        axes.set_xlabel("test length, in training lengths")
        axes.set_ylabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncol=5, frameon=False)
    figure.subplots_adjust(bottom=0.24)
    # the same lines give the same file
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
