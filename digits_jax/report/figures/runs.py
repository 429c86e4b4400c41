"""Pictures of one run: curves, confusions, calibration, robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digits_jax.report.figures import draw
from digits_jax.report.figures.draw import (
    BLUE,
    FAINT,
    GRID,
    HEAT,
    INK,
    ORANGE,
    SIGNED,
    TEAL,
    Rows,
    Style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

    from digits_jax.report.stats import Reliability

_SCORE = "validation_accuracy"
_FEW = 20  # examples in a bin
_SERIES: Mapping[str, tuple[str, Any]] = {  # {label: (the prefix of its keys, colour)}
    "as trained": ("", "#9aa5b1"),
    "train": ("train_", BLUE),
    "validation": ("validation_", ORANGE),
}


def curves(rows: Rows, path: Path, note: str = "", pruned: Sequence[float] = ()) -> None:
    """Loss, accuracy and generalisation gap by epoch, and the epoch that validation chose.

    rows: the rows of metrics.jsonl, at least one; note: what is to be said about the data. With
    several members a line is their mean and the band reaches from the least to the greatest.
    pruned: the share of weights that each member lost; each then has its own line, of validation.
    """
    members = len({row["member"] for row in rows})
    best, last = _chosen(rows), max(row["epoch"] for row in rows)
    groups: list[tuple[Rows, Mapping[str, tuple[str, Any]], Any]] = [(rows, _SERIES, TEAL)]
    if pruned:
        shown = "validation" if best else "as trained"
        blend = draw.colormap((SIGNED[0], BLUE, TEAL, ORANGE, SIGNED[-1]))
        groups = []
        for member in range(len(pruned)):
            colour = blend(member / max(len(pruned) - 1, 1))
            series = {shown: (_SERIES[shown][0], colour)}
            groups.append(([row for row in rows if row["member"] == member], series, colour))
    with draw.page(path, 8, 2.9) as figure:
        panels = figure.subplots(1, 3)

        def draw_line(ax: Axes, line: np.ndarray, colour: Any, label: str = "") -> np.ndarray:
            marker = "o" if len(line) < 4 else None
            if line.size:
                draw.band(ax, line, colour, label=label, marker=marker, clip_on=False)
            return line[:, 1:]

        losses, errors, gaps = [], [], []
        for i, (own, shown_series, gap_colour) in enumerate(groups):
            for label, (prefix, colour) in shown_series.items():
                line = draw.series(own, f"{prefix}loss", lambda loss: max(loss, draw.LEAST_LOSS))
                label = f"{100 * pruned[i]:g} %" if pruned else label
                losses.append(draw_line(panels[0], line, colour, label))
                line = draw.series(own, f"{prefix}accuracy", draw.error)
                errors.append(draw_line(panels[1], line, colour))
            both = [row for row in own if None not in map(row.get, ("train_accuracy", _SCORE))]
            both = [row | {"gap": 100 * (row["train_accuracy"] - row[_SCORE])} for row in both]
            gaps.append(draw_line(panels[2], draw.series(both, "gap", float), gap_colour))
        draw.log_axis(panels[0], losses, lambda y: f"{'≤' if y <= draw.LEAST_LOSS else ''}{y:g}")
        draw.error_axis(panels[1], errors)
        if np.concatenate(gaps).size:
            panels[2].axhline(0, color=FAINT, linewidth=0.8)
        else:
            panels[2].set(yticks=[])
            panels[2].yaxis.label.set_visible(False)
            style = {"ha": "center", "transform": panels[2].transAxes}
            panels[2].text(0.5, 0.5, "no validation split", color=FAINT, **style)
        of = f"{shown} " if pruned else ""
        titles = (f"{of}loss", f"{of}accuracy, %", "gap: train − validation")
        scales = (draw.LOG, draw.LOG_ERROR, "percentage points")
        for ax, title, scale in zip(panels, titles, scales, strict=True):
            ax.set(title=title, xlabel="epoch", ylabel=scale)
            ax.set_xlim(min(0.5, 1 - last / 40), last + max(0.5, last / 40))
            draw.epoch_axis(ax, 6)
            ax.grid(visible=True, axis="y")
            for _, epoch in () if pruned else best.values():
                ax.axvline(epoch, color=INK, linewidth=0.9, alpha=max(0.6 / len(best), 0.02))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=10)
        notes = [note] if note else []
        if pruned:
            notes.append("by the share of the weights that was pruned")
        elif members > 1:
            notes.append(f"mean and range of {members} members")
        if best and not pruned:
            scores, epochs = zip(*best.values(), strict=True)
            span = f"epoch {epochs[0]}"
            if len(set(epochs)) > 1:
                span = f"epochs {min(epochs)} to {max(epochs)}"
            notes.append(f"│ chosen on validation: {span}, {100 * np.mean(scores):.2f} %")
        figure.text(0.992, 0.955, "    ".join(notes), color=FAINT, ha="right", va="center")


def _chosen(rows: Rows) -> dict[int, tuple[float, int]]:
    """{member: (best validation accuracy, its first epoch)} of the members that have one."""
    best: dict[int, tuple[float, int]] = {}
    for row in rows:
        score, member = row.get(_SCORE), row["member"]
        if score is not None and (member not in best or score > best[member][0]):
            best[member] = (score, row["epoch"])
    return best


def confusion(
    heads: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: Mapping[str, Sequence[str]],
    path: Path,
    note: str = "",
) -> None:
    """A confusion matrix per head; the colour shows mistakes only.

    heads: {head: (labels, predictions)}, integer arrays of one shape, [N] or [P, N] to pool P
    members; classes: {head: their names}, in the order of the matrices. Up to 20 classes every
    count is written into its cell; beyond, a list of the most frequent confusions stands beside the
    matrix. Up to 60 classes all are named, beyond every tenth or the first of each row of pairs.
    """
    from matplotlib.colors import LogNorm

    heat, shown = draw.colormap(HEAT), [head for head in classes if head in heads]
    widths = [3.9 if len(classes[head]) <= 20 else 8 for head in shown]
    height = max(4.1 if width < 5 else 5.4 for width in widths)
    with draw.page(path, sum(widths), height + 0.2 * bool(note), note) as figure:
        parts = figure.subfigures(1, len(shown), width_ratios=widths, squeeze=False)[0]
        for part, head in zip(parts, shown, strict=True):
            size, names = len(classes[head]), classes[head]
            matrix = _counts(*heads[head], size)
            mistakes = matrix * (1 - np.eye(size, dtype=int))
            norm, few = LogNorm(0.9, max(mistakes.max(), 5)), size <= 20
            ratios = [3.1] if few else [3.1, 1]
            ax, *side = part.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
            ax.imshow(np.ma.masked_equal(mistakes, 0), cmap=heat, norm=norm)
            ax.set_title(f"{head}: {mistakes.sum():,} mistakes in {matrix.sum():,}")
            ax.set(xlabel="predicted", ylabel="true")
            every = 1 if size <= 60 else 10 if size <= 100 else round(size**0.5)
            _name_classes(ax, names, every, (3.2 if few else 4.7) * every / size)
            for edge in np.arange(0, size + 1, every) - 0.5:
                ax.axhline(edge, color=GRID, linewidth=0.8 if few or every > 1 else 0.4)
                ax.axvline(edge, color=GRID, linewidth=0.8 if few or every > 1 else 0.4)
            if side:
                ax.plot([-0.5, size - 0.5], [-0.5, size - 0.5], color=GRID, linewidth=0.8)
                _most_frequent(side[0], mistakes, names, heat, norm)
                continue
            for i, j in np.argwhere(matrix):
                dark = i != j and norm(matrix[i, j]) > 0.5
                colour = FAINT if i == j else "white" if dark else INK
                style = {"ha": "center", "va": "center", "fontsize": 6.5}
                ax.text(j, i, matrix[i, j], color=colour, **style)


def _name_classes(ax: Axes, names: Sequence[str], every: int, room: float) -> None:
    """Names every so many classes on both axes, each in `room` inches."""
    font = min(8.0, 0.85 * 72 * room)
    shown = [draw.shortened(name, 0.8, font) for name in names[::every]]
    upright = 90 if any(draw.shortened(name, room, font) != name for name in shown) else 0
    ax.set_xticks(range(0, len(names), every), shown, rotation=upright, fontsize=font)
    ax.set_yticks(range(0, len(names), every), shown, fontsize=font)
    draw.without_frame(ax)


def _counts(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] int64: how often class i (row) was read as class j (column)."""
    flat = np.asarray(labels, np.int64).ravel() * classes + np.asarray(predictions).ravel()
    return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


def _most_frequent(
    ax: Axes, mistakes: np.ndarray, names: Sequence[str], heat: Colormap, norm: Normalize
) -> None:
    """The 20 most frequent confusions as bars: "49 → 44" and how often."""
    order = np.argsort(-mistakes, axis=None, kind="stable")[:20]
    counts = mistakes.ravel()[order]
    order, counts = order[counts > 0], counts[counts > 0]
    ax.barh(range(len(order)), counts, color=heat(norm(counts)), height=0.72)
    for y, count in enumerate(counts):
        ax.text(count, y, f" {count}×", va="center", color=FAINT)
    short = [draw.shortened(name, 0.55) for name in names]
    pairs = [f"{short[k // len(names)]} → {short[k % len(names)]}" for k in order]
    ax.set_yticks(range(len(order)), pairs, color=INK)
    ax.set(xticks=[], xlim=(0, 1.25 * max(counts, default=1)), ylim=(19.6, -0.6))
    draw.without_frame(ax)
    ax.set_title("most frequent")


def reliability(
    diagrams: Mapping[str, tuple[Reliability, Reliability]], path: Path, note: str = ""
) -> None:
    """Accuracy over confidence, by bin: a panel for each {who: (as predicted, tempered)}.

    The points of calibrated predictions lie on the diagonal; their area grows with the examples in
    the bin. Bins of fewer than 20 are faint, with the line to them.
    """
    with draw.page(path, 3.2 * len(diagrams), 3.95 + 0.2 * bool(note), note) as figure:
        panels = figure.subplots(1, len(diagrams), squeeze=False)[0]
        for ax, (who, (predicted, tempered)) in zip(panels, diagrams.items(), strict=True):
            ax.plot([0, 100], [0, 100], color=FAINT, linewidth=0.8, zorder=1)
            for bins, label, colour in (
                (predicted, "as predicted", ORANGE),
                (tempered, "with temperature", BLUE),
            ):
                count, confidence, accuracy = np.array(bins)[:, bins.examples > 0]
                x, y, few = 100 * confidence, 100 * accuracy, count < _FEW
                alphas = np.where(few, 0.25, 1)
                style: Style = {"color": colour, "clip_on": False}
                ax.scatter(x, y, 6 + 60 * np.sqrt(count / count.sum()), alpha=alphas, **style)
                for i in range(1, len(x)):
                    ax.plot(
                        x[i - 1 : i + 1],
                        y[i - 1 : i + 1],
                        lw=1,
                        alpha=min(alphas[i - 1 : i + 1]),
                        **style,
                    )
                text = f"{label}, ECE {100 * bins.error:.2f} %"
                ax.plot([], [], "o-", color=colour, lw=1, label=text)
            ax.plot(
                [],
                [],
                "o-",
                color=FAINT,
                lw=1,
                alpha=0.4,
                label=f"faint: fewer than {_FEW} examples",
            )
            ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="confidence, %")
            ax.set_title(f"{who}: accuracy, %", pad=44)
            ax.grid(axis="y")
            ax.legend(loc="lower left", bbox_to_anchor=(-0.03, 1), borderaxespad=0.3)


def robustness(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]],
    clean: Mapping[str, Any],
    shown: Mapping[str, Sequence[np.ndarray]],
    path: Path,
    note: str = "",
) -> None:
    """Accuracy over the level of each corruption, a panel each, an example above each level.

    found: {corruption: {level: {"mean", "std"}}}; clean: {"mean", "std"} without any; shown, in the
    same order: {title: an image [H, W] uint8 of each level}.
    """
    with draw.page(path, 8, 4.6, note) as figure:
        rows = figure.subplots(4, 3, height_ratios=(1, 3, 1, 3)).reshape(2, 2, 3)
        strips, panels = rows[:, 0].ravel(), rows[:, 1].ravel()
        errors, several = [], False
        for strip, ax, levels, title in zip(strips, panels, found.values(), shown, strict=True):
            strip.set_axis_off()
            strip.set_title(title)
            x = [0.0, *map(float, levels)]
            accuracies = [(at["mean"], at["std"] or 0) for at in (clean, *levels.values())]
            mean, std = np.transpose(accuracies)
            several = several or bool(std.any())
            line = np.column_stack([x, draw.error(np.column_stack([mean, mean + std, mean - std]))])
            draw.band(ax, line, BLUE, marker="o")
            ax.set_xticks(x)
            ax.set_xlim(-0.2 * x[1], x[-1] + 0.5 * x[1])  # room for half an image
            errors.append(line[:, 2:])
        for ax in panels:
            draw.error_axis(ax, errors)
        band = ", mean ± standard deviation" if several else ""
        figure.supylabel(f"test accuracy, %{band} ({draw.LOG_ERROR})", fontsize=8, color=FAINT)
        figure.draw_without_rendering()  # now the panels have their sizes
        for strip, ax, images in zip(strips, panels, shown.values(), strict=True):
            levels = ax.get_xticks()[1:]
            strip.set_xlim(ax.get_xlim())
            for level, image in zip(levels, images, strict=True):
                _above(strip, image, level, 0.95 * levels[0])


def _above(ax: Axes, image: np.ndarray, x: float, most: float) -> None:
    """Draws an image [H, W] with its middle at `x`, at most `most` wide and as high as `ax`."""
    high, wide = image.shape
    left, right = ax.get_xlim()
    per_pixel = (right - left) / ax.bbox.width
    width = min(ax.bbox.height * wide / high * per_pixel, most)
    top = width / per_pixel * high / wide / ax.bbox.height
    box = (x - width / 2, x + width / 2, 0, top)
    ax.imshow(image, cmap="gray_r", vmin=0, vmax=255, extent=box, aspect="auto")
    ax.set(xlim=(left, right), ylim=(0, 1))
