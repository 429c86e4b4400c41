"""Pictures of several networks side by side: runs, pruned members, a search's trials."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from digits_jax.report.figures import draw
from digits_jax.report.figures.draw import BLUE, FAINT, GRID, INK, ORANGE, TEAL, Rows, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox


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
        accuracy.plot([], [], "_", markersize=10, color=ORANGE, label="± two standard errors")
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
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper left", ncols=4)


def pruning(rows: Rows, path: Path, note: str = "") -> None:
    """Accuracy over the weights that are left: hollow markers before fine-tuning, full after."""
    split = "test" if "test" in rows[0] else "validation"
    left = [row["weights"] for row in rows]
    before, after = draw.error(np.array([(r[f"{split}_before"], r[split]) for r in rows])).T
    with draw.page(path, 5.6, 3.4 + 0.2 * bool(note), note) as figure:
        ax = figure.subplots()
        ax.plot(left, before, "o--", color=FAINT, markerfacecolor="white", label="pruned")
        ax.plot(left, after, "o-", color=BLUE, label="and trained on")
        ax.set_xscale("log")
        ticks = [x for x in draw.TICKS if min(left) <= x <= max(left)]
        ax.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
        ax.set_xticks([], minor=True)
        draw.error_axis(ax, [after, before])
        above: Style = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        for x, y, row in zip(left, np.minimum(before, after), rows, strict=True):
            ax.annotate(f"{100 * row['pruned']:g} %", (x, y), **above)
        ax.set_xlabel(f"weights left ({draw.LOG}; above the points, the share pruned)")
        ax.set_ylabel(f"{split} accuracy, % ({draw.LOG_ERROR})")
        ax.legend(loc="lower right", labelcolor=INK)


def frontier(points: Rows, path: Path) -> None:
    """Test accuracy over parameters, with the 95 % interval of the mean and the quoted figures.

    The line of a data set has a step at each network that is better than all smaller ones. Networks
    that would cover each other stand side by side. A name that would cover anything is left out.
    points: {"run", "dataset", "parameters", "mean", "half" (or None), "quoted" (a list, by head)},
    fractions all; at least one.
    """
    from matplotlib.ticker import StrMethodFormatter

    colours = {"mnist": BLUE, "mnist100": ORANGE, "two_digit": TEAL}
    steps = {d: record_steps([p for p in points if p["dataset"] == d]) for d in colours}
    leading = {(d, *step) for d in colours for step in steps[d]}
    keys = [(p["dataset"], p["parameters"], p["mean"]) for p in points]
    first = sorted(range(len(points)), key=lambda i: (keys[i] not in leading, -points[i]["mean"]))
    points, keys = [points[i] for i in first], [keys[i] for i in first]  # the order they are placed
    sizes = np.array([point["parameters"] for point in points], float)
    mean = draw.error(np.array([point["mean"] for point in points]))
    high = mean + [100 * (point["half"] or 0) for point in points]
    low = np.maximum(2 * mean - high, mean / 2)
    quoted = draw.error(np.array([np.mean(p["quoted"] or p["mean"]) for p in points]))
    with draw.page(path, 8, 5.6) as figure:
        ax = figure.subplots()
        ax.set(xscale="log", xlim=(sizes.min() / 1.6, sizes.max() * 1.9))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ax.set(title="Test accuracy, %", ylabel=draw.LOG_ERROR)
        ax.set_xlabel(f"parameters ({draw.LOG}; networks of about one size stand side by side)")
        draw.error_axis(ax, [low, high, quoted])
        for dataset, colour in colours.items():
            ax.plot([], [], "o", color=colour, label=dataset)
        ax.plot([], [], "|", markersize=9, color=FAINT, label="95 % interval of the mean")
        hollow: Style = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "ls": ""}
        ax.plot([], [], color=FAINT, label="quoted", **hollow)
        figure.legend(loc="outside upper right", ncols=5, labelcolor=INK)
        figure.draw_without_rendering()  # now the page is laid out, and data have their pixels
        figure.set_layout_engine("none")
        columns = _side_by_side(ax, sizes, np.array([mean, low, high, quoted]))
        middles = np.array([((box.x0 + box.x1) / 2, 0) for box in columns])
        x = ax.transData.inverted().transform(middles)[:, 0]
        taken = list(columns)
        for dataset, colour in colours.items():
            corners = [
                (x[keys.index((dataset, *step))], draw.error(step[1])) for step in steps[dataset]
            ]
            if len(corners) > 1:
                style: Style = {"color": colour, "lw": 0.8, "alpha": 0.5, "zorder": 0}
                ax.step(*np.transpose(corners), where="post", **style)
                taken += _lines(ax.transData.transform(corners))
        for i, point in enumerate(points):
            colour = colours.get(point["dataset"], INK)
            span = [[mean[i] - low[i]], [high[i] - mean[i]]]
            if point["quoted"]:
                ax.plot([x[i]] * 2, [mean[i], quoted[i]], color=colour, lw=0.6, alpha=0.5)
                ax.plot(x[i], quoted[i], color=colour, **hollow)
            ax.errorbar(x[i], mean[i], span, fmt="o", color=colour, elinewidth=1, capsize=2)
            bar = ax.transData.transform([(x[i], low[i]), (x[i], mean[i]), (x[i], high[i])])[:, 1]
            _name(ax, point["run"], bar, columns[i], taken, color=colour)


def _side_by_side(ax: Axes, sizes: np.ndarray, errors: np.ndarray) -> list[Bbox]:
    """The box in pixels of each point and its bars, moved aside where another would cover it.

    sizes: [N]; errors: [K, N], what its bars and markers reach.
    """
    width = 5.5 * ax.figure.dpi / 72  # of a marker
    boxes: list[Bbox] = []
    for size, values in zip(sizes, errors.T, strict=True):
        pixels = ax.transData.transform([(size, value) for value in values])
        x, bottom, top = (
            pixels[0, 0],
            pixels[:, 1].min() - width / 2,
            pixels[:, 1].max() + width / 2,
        )
        moves = sorted(width * np.arange(-5, 5.5, 0.5), key=abs)
        tried = [_box(x + move - width / 2, bottom, width, top - bottom) for move in moves]
        boxes.append(next((box for box in tried if not box.count_overlaps(boxes)), tried[0]))
    return boxes


def _name(
    ax: Axes, text: str, bar: np.ndarray, column: Bbox, taken: list[Bbox], **style: Any
) -> None:
    """Writes a point's name beside, above or below it, if it covers none of the boxes `taken`.

    bar: [3] pixels, the upper end of its interval, the point, the lower end; column: its box.
    """
    high, middle, low = bar

    def to_data(left: float, bottom: float) -> tuple[float, float]:
        x, y = ax.transData.inverted().transform((left, bottom))
        return x, y

    x, y = to_data(column.x0, middle)
    name = ax.text(x, y, text, fontsize=6.5, va="bottom", **style)
    width, height = name.get_window_extent().size
    gap, near = 3.0, 2.5 * column.width  # a quoted figure between a point and its name is near
    places = [
        (left, middle - height / 2 + move)
        for left in (column.x1 + gap, column.x0 - gap - width)
        for move in (0, 4, -4, 8, -8)
    ]
    centre = (column.x0 + column.x1 - width) / 2
    if column.y1 < high + near:
        places.append((centre, column.y1 + gap))
    if column.y0 > low - near:
        places.append((centre, column.y0 - gap - height))
    for left, bottom in places:
        box = _box(left, bottom, width, height)
        inside = ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1 and ax.bbox.y0 < box.y0
        if inside and not box.count_overlaps(taken):
            taken.append(box)
            name.set_position(to_data(left, bottom))
            return
    name.remove()


def _lines(corners: np.ndarray) -> list[Bbox]:
    """The boxes of a line with steps, [N, 2] pixels: right first, then up or down."""
    boxes = []
    for (x, y), (right, end) in pairwise(corners):
        boxes += [_box(x, y - 1, right - x, 2), _box(right - 1, min(y, end), 2, abs(end - y))]
    return boxes


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x, y, width, height)


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
        title = f"Accuracy, % ({draw.LOG_ERROR}): training (blue), validation (orange), all seeds"
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
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    titles = ["trial", *fields, *(["importance"] if importances else [])]
    columns = min(len(titles), 3)
    errors = draw.error(np.array([p["value"] or 0 for p in points]))
    pruned = np.array([p["pruned"] for p in points], bool)
    with draw.page(path, 2.7 * columns, 2.4 * -(-len(titles) // columns), note) as figure:
        panels = draw.grid_of_panels(figure, len(titles), columns)
        for ax, field in zip(panels, titles, strict=True):
            ax.set_title(field)
            if field == "importance":
                names = sorted(importances, key=lambda name: importances[name])
                ax.barh(range(len(names)), [importances[name] for name in names], color=GRID)
                for y, name in enumerate(names):
                    ax.text(0, y, f" {name.rpartition('.')[2]}", va="center")
                ax.set_yticks([])
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
                ax.set(xscale="log", xlabel=draw.LOG)
                ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                ax.xaxis.set_minor_formatter(NullFormatter())
            draw.error_axis(ax, [errors])
        label = f"validation accuracy, % ({draw.LOG_ERROR})"
        figure.supylabel(label, fontsize=8, color=FAINT)
