"""Pictures of several networks side by side: runs, pruned members, a search's trials."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np

from digits_jax.report.figures import draw
from digits_jax.report.figures.draw import BLUE, FAINT, GRID, INK, ORANGE, TEAL, Rows, Style


def ablation(rows: Rows, path: Path) -> None:
    """A row per run: accuracies, parameters, changes and their effect.

    rows: those of `compare.ablation`, at least one. The bar through a validation accuracy is two
    standard errors to each side.
    """
    texts = [[fill(row[key], 66) for key in ("changed", "reading")] for row in rows]
    heights = [max(0.15 * ("\n".join(pair).count("\n") + 1) + 0.15, 0.5) for pair in texts]
    edges = np.concatenate([[0], np.cumsum(heights)])  # inches
    middles = (edges[:-1] + edges[1:]) / 2
    with draw.page(path, 8, edges[-1] + 0.8) as figure:
        accuracy, size, text = figure.subplots(1, 3, width_ratios=[3, 1.5, 4.4], sharey=True)
        markers = {"train": (BLUE, "o"), "validation": (ORANGE, "o"), "test": (INK, "D")}
        for key, (colour, marker) in markers.items():
            points = [(100 * r[key], y) for r, y in zip(rows, middles, strict=True) if r[key]]
            if points:
                accuracy.plot(*np.transpose(points), marker, color=colour, label=key, clip_on=False)
        errors = [200 * row["error"] for row in rows]
        scores = [100 * row["validation"] for row in rows]
        accuracy.errorbar(scores, middles, xerr=errors, fmt="none", ecolor=ORANGE, elinewidth=1)
        accuracy.set_yticks(middles, [row["run"] for row in rows], color=INK)
        accuracy.set(ylim=(edges[-1], 0), title="accuracy, %")
        accuracy.grid(axis="x")
        size.barh(middles, [row["parameters"] for row in rows], color=GRID, height=0.3)
        size.set(xticks=[], title="parameters")
        text.set(xticks=[], xlim=(0, 1), title="what changed, and what it did")
        draw.without_frame(size, text)
        style: Style = {"va": "top", "fontsize": 6.5, "linespacing": 1.3}
        for row, y, top, (changed, reading) in zip(rows, middles, edges, texts, strict=False):
            size.text(0, y, f" {row['parameters']:,}", va="center")
            text.text(0, top + 0.08, changed, **style)
            below = top + 0.08 + 0.15 * (changed.count("\n") + 1)
            text.text(0, below, reading, color=FAINT, **style)
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper left", ncols=3)


def pruning(rows: Rows, path: Path, note: str = "") -> None:
    """Accuracy over the weights that are left: hollow markers before fine-tuning, full after."""
    split = "test" if "test" in rows[0] else "validation"
    left = [row["weights"] for row in rows]
    before, after = draw.error(np.array([(r[f"{split}_before"], r[split]) for r in rows])).T
    with draw.page(path, 5.6, 3.4) as figure:
        ax = figure.subplots()
        ax.plot(left, before, "o--", color=FAINT, markerfacecolor="white", label="pruned")
        ax.plot(left, after, "o-", color=BLUE, label="and trained on")
        ax.set_xscale("log")
        ticks = [x for x in draw.TICKS if min(left) <= x <= max(left)]
        ax.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
        ax.set_xticks([], minor=True)
        draw.error_axis(ax, [after, before])
        above: Style = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        for x, y, row in zip(left, after, rows, strict=True):
            ax.annotate(f"{100 * row['pruned']:g} %", (x, y), **above)
        ax.set(xlabel="weights left", ylabel=draw.noted(f"{split} accuracy, %", note))
        ax.legend(loc="lower right", labelcolor=INK)


def frontier(points: Rows, path: Path) -> None:
    """Test accuracy over parameters, with the 95 % interval of the mean and the quoted figures.

    The line of a data set has a step at each network that is better than all smaller ones.
    points: {"run", "dataset", "parameters", "mean", "half" (or None), "quoted" (a list, by head)},
    fractions all.
    """
    from matplotlib.patheffects import withStroke

    colours = {"mnist": BLUE, "mnist100": ORANGE, "two_digit": TEAL}
    label: Style = {
        "textcoords": "offset points",
        "xytext": (5, 0),
        "fontsize": 6,
        "va": "center",
        "path_effects": [withStroke(linewidth=2, foreground="white")],  # lines run behind it
    }
    with draw.page(path, 8, 5.2) as figure:
        ax = figure.subplots()
        ax.set_xscale("log")
        drawn: list[float] = []
        taken: list[tuple[float, float]] = []
        for point in sorted(points, key=lambda p: -p["mean"]):
            x, y = point["parameters"], draw.error(point["mean"])
            colour = colours.get(point["dataset"], INK)
            half = 100 * (point["half"] or 0)
            low = min(half, y / 2)
            ax.errorbar(x, y, [[low], [half]], fmt="o", color=colour, elinewidth=1, capsize=2)
            drawn += [y, y - low]
            if point["quoted"]:
                quoted = draw.error(np.mean(point["quoted"]))
                drawn.append(quoted)
                ax.plot([x, x], [y, quoted], color=colour, lw=0.6, alpha=0.5)
                ax.plot(x, quoted, "D", markersize=4, markerfacecolor="white", color=colour)
            spot = (np.log(x) / 0.9, np.log(y) / 0.09)  # in widths of a label and lines
            while any(abs(spot[0] - a) < 1 and abs(spot[1] - b) < 1 for a, b in taken):
                spot = (spot[0], spot[1] + 0.25)
            taken.append(spot)
            ax.annotate(point["run"], (x, np.exp(spot[1] * 0.09)), color=colour, **label)
        draw.error_axis(ax, [np.array(drawn)])
        for dataset, colour in colours.items():
            ax.plot([], [], "o", color=colour, label=dataset)
            steps = record_steps([p for p in points if p["dataset"] == dataset])
            if len(steps) > 1:
                sizes, means = np.transpose(steps)
                style: Style = {"color": colour, "lw": 0.8, "alpha": 0.5, "zorder": 0}
                ax.step(sizes, draw.error(means), where="post", **style)
        ax.plot([], [], "D", markerfacecolor="white", color=FAINT, label="quoted")
        ax.legend(loc="lower center", ncols=4, labelcolor=INK)
        ax.set_xlim(right=ax.get_xlim()[1] * 1.6)  # room for the last label
        ax.set(title="Test accuracy, %", xlabel="parameters")


def record_steps(points: Rows) -> list[tuple[int, float]]:
    """(parameters, mean) of the points that are better than all others of at most their size."""
    steps: list[tuple[int, float]] = []
    for point in sorted(points, key=lambda p: (p["parameters"], -p["mean"])):
        if not steps or point["mean"] > steps[-1][1]:
            steps.append((point["parameters"], point["mean"]))
    return steps


def learning(runs: Mapping[str, Rows], path: Path) -> None:
    """Training and validation accuracy by epoch, a panel per run: mean and range of the members.

    The training accuracy is the evaluated one or, without validation, that of the training steps.
    """
    with draw.page(path, 8, 1.6 * -(-len(runs) // 4)) as figure:
        panels = draw.grid_of_panels(figure, len(runs), 4)
        for ax, (run, rows) in zip(panels, runs.items(), strict=True):
            trained = "train_accuracy" if "train_accuracy" in rows[0] else "accuracy"
            drawn = []
            for key, colour in ((trained, BLUE), ("validation_accuracy", ORANGE)):
                line = draw.series(rows, key, draw.error)
                if line.size:
                    draw.band(ax, line, colour, lw=1.2)
                    drawn.append(line[:, 1:])
            if drawn:
                draw.error_axis(ax, drawn)
            draw.epoch_axis(ax, 4)
            ax.set_title(run, fontsize=7)
            ax.tick_params(labelsize=6)
        figure.supxlabel("epoch", fontsize=7, color=FAINT)
        title = "Accuracy, %: training (blue) and validation (orange), all seeds"
        figure.suptitle(title, fontsize=9, x=0.02, ha="left", weight="bold")


def search(
    points: Rows,
    fields: Sequence[str],
    logs: Collection[str],
    importances: Mapping[str, float],
    path: Path,
    note: str = "",
) -> None:
    """The trials of a search: in order, over each field, and the importance of the fields.

    points: {"trial", "value", "pruned"} and a value by field, each; logs: fields of a logarithmic
    range; importances: shares by field, empty where they are not known yet.
    """
    from matplotlib.ticker import NullFormatter

    titles = ["trial", *fields, *(["importance"] if importances else [])]
    columns = min(len(titles), 3)
    errors = draw.error(np.array([p["value"] or 0 for p in points]))
    pruned = np.array([p["pruned"] for p in points], bool)
    with draw.page(path, 2.7 * columns, 2.4 * -(-len(titles) // columns)) as figure:
        panels = draw.grid_of_panels(figure, len(titles), columns)
        for ax, field in zip(panels, titles, strict=True):
            ax.set_title(field)
            if field == "importance":
                names = sorted(importances, key=lambda name: importances[name])
                short = [name.rpartition(".")[2] for name in names]
                ax.barh(short, [importances[name] for name in names], color=TEAL)
                continue
            x = [p[field] for p in points]
            if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in x):
                x = [str(v) for v in x]
            for mask, colour in ((pruned, FAINT), (~pruned, BLUE)):
                chosen = [v for v, keep in zip(x, mask, strict=True) if keep]
                ax.scatter(chosen, errors[mask], 14, color=colour)
            if field == "trial":
                best = np.minimum.accumulate(errors)
                ax.plot(x, best, color=ORANGE, drawstyle="steps-post")
            if field in logs and min(x) > 0:
                ax.set_xscale("log")
                ax.xaxis.set_minor_formatter(NullFormatter())
            draw.error_axis(ax, [errors])
        panels[0].set_ylabel(draw.noted("validation accuracy, %", note))
