"""What only the demonstration's page has: its two pictures."""

from matplotlib.figure import Figure


def length_plot(losses: dict[str, dict[int, float]], trained_at: int) -> Figure:
    """Loss over test length, one line a variant."""
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for (label, values), marker in zip(losses.items(), "osD^v", strict=False):
        axes.plot(list(values), list(values.values()), marker=marker, label=label)
    axes.axvline(trained_at, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    lengths = list(next(iter(losses.values())))
    axes.set_xticks(lengths, [f"{length}\n{length // trained_at}x" for length in lengths])
    axes.set_xlabel("test length in bytes, and as a multiple of the training length")
    axes.set_ylabel("loss, nats per byte")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def adoption_plot(cosines: dict[str, tuple[float, float]]) -> Figure:
    """Cosine to the original, after the bare swap and after adoption."""
    figure = Figure(figsize=(8, 0.7 * len(cosines) + 1.2))
    axes = figure.subplots()
    for row, (before, after) in enumerate(cosines.values()):
        axes.plot([before, after], [row, row], color="grey", linewidth=1, zorder=1)
        axes.scatter(
            [before], [row], color="tab:red", label="swapped" if row == 0 else None, zorder=2
        )
        axes.scatter(
            [after], [row], color="tab:green", label="adopted" if row == 0 else None, zorder=2
        )
    axes.axvline(1.0, color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(cosines)), list(cosines))
    axes.set_ylim(len(cosines) - 0.5, -0.5)
    axes.set_xlabel("cosine of the sentence embeddings to the original's (CLINC150 test queries)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2)
    return figure
