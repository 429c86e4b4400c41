"""Pictures of what a run learned: light, at most 8 inches wide, readable at 800 pixels.

Each function draws one PNG file from arrays or rows. matplotlib is imported when the first picture
is drawn, through its object interface: no pyplot, no display, no global state.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from textwrap import fill
from typing import Any

import numpy as np

Rows = Sequence[dict[str, Any]]

INK, FAINT, GRID = "#1f2a37", "#7b8794", "#e7eaee"
BLUE, ORANGE, TEAL = "#2b6cb0", "#dd6b20", "#2c7a7b"
HEAT = ["#fbe3d0", "#ee9a5c", "#c2410c", "#7a2308"]
SIGNED = ["#153e75", BLUE, "#ffffff", ORANGE, "#7a2308"]
LEAST_LOSS, LEAST_ERROR = 1e-4, 0.01  # what is smaller (a perfect epoch, say) is drawn here
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": "#c3cad2",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": "#c3cad2",
    "ytick.color": "#c3cad2",
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "legend.columnspacing": 1.4,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "legend.labelcolor": "linecolor",
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "lines.solid_capstyle": "round",
    "savefig.dpi": 160,
}


def class_names(classes: int) -> list[str]:
    """Names of equal length: "0" ... "9" for 10 classes, "00" ... "99" for 100."""
    return [f"{c:0{len(str(classes - 1))}d}" for c in range(classes)]


def noted(title: str, note: str) -> str:
    """A title that says what is special about a picture's digits: that they are drawn, say."""
    return f"{title}, {note}" if note else title


@contextmanager
def page(path: str | os.PathLike, width: float, height: float) -> Iterator[Any]:
    """An empty figure, in inches, that is written to `path` when all is drawn."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def _series(rows: Rows, value: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """[E, 4] float64: epoch, then mean, least and greatest over its members, where there are any.

    `value` may give NaN, or fail on a row that lacks what it reads: that row does not count.
    """
    epochs: dict[int, list[float]] = {}
    for row in rows:
        try:
            number = float(value(row))
        except (KeyError, TypeError):
            continue
        if np.isfinite(number):
            epochs.setdefault(row["epoch"], []).append(number)
    table = [(e, np.mean(v), np.min(v), np.max(v)) for e, v in sorted(epochs.items())]
    return np.array(table, np.float64).reshape(-1, 4)


def _log_axis(ax: Any, lines: list[np.ndarray], label: Callable[[float], str]) -> None:
    """A logarithmic y axis that begins and ends at a tick (1, 2 or 5 times a power of ten)."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if not (values := np.concatenate(lines)[:, 1:]).size:
        return
    ticks = np.array([m * 10.0**k for k in range(-7, 31) for m in (1, 2, 5)])
    first = np.searchsorted(ticks, values.min() * 1.0001, side="right") - 1
    last = np.searchsorted(ticks, values.max() * 0.9999)
    shown = ticks[max(first, 0) : max(last, first + 1) + 1]
    ax.set_yscale("log")
    ax.set_ylim(shown[0], shown[-1])
    if len(shown) > 9:
        shown = shown[[f"{tick:e}".startswith("1") for tick in shown]]
    ax.yaxis.set_major_locator(FixedLocator(list(shown)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: label(y)))


def _error_axis(ax: Any, errors: np.ndarray) -> None:
    """An accuracy axis, logarithmic in the error: 99.0 and 99.5 as far apart as 90 and 95."""
    _log_axis(ax, [np.stack([errors, errors], axis=1)], lambda y: f"{100 - y:g}")
    ax.invert_yaxis()
    ax.grid(axis="y")


def _chosen(rows: Rows) -> dict[int, tuple[float, int]]:
    """{member: (best validation accuracy, its first epoch)} of the members that have one."""
    best: dict[int, tuple[float, int]] = {}
    for row in rows:
        score = row.get("validation_accuracy")
        if score is not None and (row["member"] not in best or score > best[row["member"]][0]):
            best[row["member"]] = (score, row["epoch"])
    return best


def curves(rows: Rows, path: str | os.PathLike, note: str = "") -> None:
    """Loss, accuracy and generalisation gap by epoch, and the epoch that validation chose.

    rows: the rows of metrics.jsonl, at least one; note: as in `noted`, here and below. The accuracy
    axis is logarithmic in the error, so that 99.0 and 99.5 lie as far apart as 90 and 95. With
    several members a line is their mean and the band reaches from the least to the greatest.
    """
    from matplotlib.ticker import MaxNLocator

    members = len({row["member"] for row in rows})
    best, last = _chosen(rows), max(row["epoch"] for row in rows)
    lines = (
        ("as trained", "", "#9aa5b1"),
        ("train", "train_", BLUE),
        ("validation", "validation_", ORANGE),
    )
    with page(path, 8, 2.9) as figure:
        panels = figure.subplots(1, 3)

        def draw(
            ax: Any, value: Callable, colour: str, least: float, label: str = ""
        ) -> np.ndarray:
            line = _series(rows, value)
            line[:, 1:] = line[:, 1:].clip(least)
            if line.size:
                marker = "o" if len(line) < 4 else None
                ax.plot(*line[:, :2].T, color=colour, label=label, marker=marker, clip_on=False)
                if members > 1:
                    ax.fill_between(line[:, 0], *line[:, 2:].T, color=colour, alpha=0.18, lw=0)
            return line

        losses, errors = [], []
        for label, prefix, colour in lines:

            def error(row: dict[str, Any], key: str = prefix + "accuracy") -> float:
                return 100 - 100 * row[key]

            losses.append(draw(panels[0], itemgetter(prefix + "loss"), colour, LEAST_LOSS, label))
            errors.append(draw(panels[1], error, colour, LEAST_ERROR))
        _log_axis(panels[0], losses, "{:g}".format)
        _log_axis(panels[1], errors, lambda y: f"{100 - y:g}")
        panels[1].invert_yaxis()

        def gap(row: dict[str, Any]) -> float:
            return 100 * (row["train_accuracy"] - row["validation_accuracy"])

        if draw(panels[2], gap, TEAL, -100).size:
            panels[2].axhline(0, color=FAINT, linewidth=0.8)
        else:
            panels[2].set(yticks=[])
            middle = panels[2].transAxes
            panels[2].text(
                0.5, 0.5, "no validation split", color=FAINT, ha="center", transform=middle
            )
        titles = ("loss", "accuracy, %", "gap: train − validation, points")
        for ax, title in zip(panels, titles, strict=True):
            ax.set_title(title)
            ax.set_xlabel("epoch")
            ax.set_xlim(min(0.5, 1 - last / 40), last + max(0.5, last / 40))
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            ax.grid(axis="y")
            for _, epoch in best.values():
                ax.axvline(epoch, color=INK, linewidth=0.9, alpha=max(0.6 / len(best), 0.02))
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
        notes = [note] if note else []
        notes += [f"mean and range of {members} members"] if members > 1 else []
        if best:
            scores, epochs = zip(*best.values(), strict=True)
            span = f"epoch {epochs[0]}"
            if len(set(epochs)) > 1:
                span = f"epochs {min(epochs)} to {max(epochs)}"
            notes.append(f"│ chosen on validation: {span}, {100 * np.mean(scores):.2f} %")
        figure.text(0.992, 0.955, "    ".join(notes), color=FAINT, ha="right", va="center")


def ablation(rows: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """Runs from top to bottom: accuracies, parameters, what changed and what it did.

    rows: those of `compare.ablation`, at least one. The bar through a validation accuracy is two
    standard errors to each side.
    """
    texts = [[fill(row[key], 66) for key in ("changed", "reading")] for row in rows]
    heights = [max(0.15 * ("\n".join(pair).count("\n") + 1) + 0.15, 0.5) for pair in texts]
    edges = np.concatenate([[0], np.cumsum(heights)])  # inches
    middles = (edges[:-1] + edges[1:]) / 2
    with page(path, 8, edges[-1] + 0.8) as figure:
        accuracy, size, text = figure.subplots(1, 3, width_ratios=[3, 1.5, 4.4], sharey=True)
        for key, colour, marker in (
            ("train", BLUE, "o"),
            ("validation", ORANGE, "o"),
            ("test", INK, "D"),
        ):
            known = [i for i, row in enumerate(rows) if row[key] is not None]
            if known:
                values = [100 * rows[i][key] for i in known]
                accuracy.plot(
                    values, middles[known], marker, color=colour, label=key, clip_on=False
                )
        errors = [200 * row["error"] for row in rows]
        scores = [100 * row["validation"] for row in rows]
        accuracy.errorbar(scores, middles, xerr=errors, fmt="none", ecolor=ORANGE, elinewidth=1)
        accuracy.set_yticks(middles, [row["run"] for row in rows], color=INK)
        accuracy.set(ylim=(edges[-1], 0), title="accuracy, %")
        accuracy.grid(axis="x")
        size.barh(middles, [row["parameters"] for row in rows], color=GRID, height=0.3)
        for y, row in zip(middles, rows, strict=True):
            size.text(0, y, f" {row['parameters']:,}", va="center")
        size.set(xticks=[], title="parameters")
        text.set(xticks=[], xlim=(0, 1), title="what changed, and what it did")
        for ax in (size, text):
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0, labelleft=False)
        style = {"va": "top", "fontsize": 6.5, "linespacing": 1.3}
        for top, (changed, said) in zip(edges[:-1] + 0.08, texts, strict=True):
            text.text(0, top, changed, **style)
            text.text(0, top + 0.15 * (changed.count("\n") + 1), said, color=FAINT, **style)
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside upper left", ncols=3)


def pruning(rows: Rows, path: str | os.PathLike, note: str = "") -> None:
    """Accuracy over the weights that are left; hollow before training on, full after it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    split = "test" if "test" in rows[0] else "validation"
    left = [row["weights"] for row in rows]
    with page(path, 5.6, 3.4) as figure:
        ax = figure.subplots()
        after, before = (
            [100 * (1 - row[name]) for row in rows] for name in (split, f"{split}_before")
        )
        ax.plot(left, before, "o--", color=FAINT, markerfacecolor="white", label="pruned")
        ax.plot(left, after, "o-", color=BLUE, label="and trained on")
        ax.set_xscale("log")
        ticks = [m * 10.0**k for k in range(10) for m in (1, 2, 5)]
        ax.xaxis.set_major_locator(FixedLocator([x for x in ticks if min(left) <= x <= max(left)]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        _error_axis(ax, np.array([*after, *before]))
        for x, y, row in zip(left, after, rows, strict=True):
            ax.annotate(
                f"{100 * row['pruned']:g} %",
                (x, y),
                (0, 6),
                textcoords="offset points",
                ha="center",
            )
        ax.set_xlabel("weights left")
        ax.set_ylabel(noted(f"{split} accuracy, %", note))
        ax.legend(loc="lower right", labelcolor=INK)


def _counts(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """[C, C] int64: how often class i (row) was read as class j (column)."""
    flat = np.asarray(labels, np.int64).ravel() * classes + np.asarray(predictions).ravel()
    return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


def confusion(
    heads: dict[str, tuple[np.ndarray, np.ndarray]],
    classes: dict[str, int],
    path: str | os.PathLike,
    note: str = "",
) -> None:
    """A confusion matrix per head; the colour shows mistakes only.

    heads: {head: (labels, predictions)}, integer arrays of one shape, [N] or [P, N] to pool P
    members; classes: {head: number of classes}. Up to 20 classes every count is written into its
    cell; beyond, a list of the most frequent confusions stands beside the matrix.
    """
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    heat = LinearSegmentedColormap.from_list("mistakes", HEAT)
    widths = [3.9 if classes[head] <= 20 else 8 for head in heads]
    with page(path, sum(widths), max(4.1 if w < 5 else 5.4 for w in widths)) as figure:
        parts = np.atleast_1d(figure.subfigures(1, len(heads), width_ratios=widths))
        for part, head, width in zip(parts, heads, widths, strict=True):
            size, names = classes[head], class_names(classes[head])
            matrix = _counts(*heads[head], size)
            mistakes = matrix * (1 - np.eye(size, dtype=int))
            if width < 5:
                ax = part.subplots()
            else:
                ax, side = part.subplots(1, 2, width_ratios=[3.1, 1])
            norm = LogNorm(0.9, max(mistakes.max(), 5))
            ax.imshow(np.ma.masked_equal(mistakes, 0), cmap=heat, norm=norm)
            ax.set_title(noted(f"{head}: {mistakes.sum():,} mistakes in {matrix.sum():,}", note))
            ax.set(xlabel="predicted", ylabel="true")
            ax.spines[:].set_visible(False)
            every = 1 if size <= 20 else 10
            ax.set_xticks(range(0, size, every), names[::every])
            ax.set_yticks(range(0, size, every), names[::every])
            ax.tick_params(length=0)
            for edge in np.arange(0, size + 1, every) - 0.5:
                ax.axhline(edge, color=GRID, linewidth=0.8)
                ax.axvline(edge, color=GRID, linewidth=0.8)
            if every == 1:
                for (i, j), count in np.ndenumerate(matrix):
                    if count:
                        dark = i != j and norm(count) > 0.5
                        colour = FAINT if i == j else "white" if dark else INK
                        ax.text(j, i, count, ha="center", va="center", color=colour, fontsize=6.5)
            else:
                ax.plot([-0.5, size - 0.5], [-0.5, size - 0.5], color=GRID, linewidth=0.8)
                _most_frequent(side, mistakes, names, heat, norm)


def _most_frequent(ax: Any, mistakes: np.ndarray, names: list[str], heat: Any, norm: Any) -> None:
    """The 20 most frequent confusions as bars: "49 → 44" and how often."""
    order = np.argsort(-mistakes, axis=None, kind="stable")[:20]
    counts = mistakes.ravel()[order]
    order, counts = order[counts > 0], counts[counts > 0]
    ax.barh(range(len(order)), counts, color=heat(norm(counts)), height=0.72)
    for y, count in enumerate(counts):
        ax.text(count, y, f" {count}×", va="center", color=FAINT)
    pairs = [f"{names[k // len(names)]} → {names[k % len(names)]}" for k in order]
    ax.set_yticks(range(len(order)), pairs, color=INK)
    ax.set(xticks=[], xlim=(0, 1.25 * max(counts, default=1)), ylim=(19.6, -0.6))
    ax.spines[:].set_visible(False)
    ax.set_title("most frequent")


def _percent(probability: float) -> str:
    return ">99%" if probability > 0.995 else f"{probability:.0%}"


def _mosaic(images: np.ndarray, columns: int, gap: int, foot: int) -> np.ndarray:
    """Lays images [N, H, W] out in R rows: [R * (H + 4 + foot), columns * (W + gap)] uint8.

    `foot` rows of paper below each image are left for its caption.
    """
    n, height, width = images.shape
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, height + 4 + foot, width + gap), np.uint8)
    cells[:n, 2 : 2 + height, gap // 2 : gap // 2 + width] = images
    cells = cells.reshape(rows, columns, *cells.shape[1:])
    return cells.swapaxes(1, 2).reshape(rows * cells.shape[2], columns * cells.shape[3])


def _draw_mosaic(path: str | os.PathLike, mosaic: np.ndarray, title: str, captions: list) -> None:
    """Ink on paper at 8 inches; captions: (x, y, text, colour, alignment) in pixels of `mosaic`."""
    head = 0.3 if title else 0
    height = 8 * mosaic.shape[0] / mosaic.shape[1]
    with page(path, 8, height + head) as figure:
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, height / (height + head)))
        ax.set_axis_off()
        ax.imshow(mosaic, cmap="gray_r", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
        figure.text(0.008, 1 - 0.17 / (height + head), title, va="center", fontweight="bold")
        for x, y, text, colour, align in captions:
            ax.text(x, y, text, color=colour, ha=align, va="top", fontsize=7, linespacing=1.25)


def errors(
    images: np.ndarray,
    heads: dict[str, tuple[np.ndarray, np.ndarray]],
    path: str | os.PathLike,
    count: int = 40,
    note: str = "",
) -> None:
    """The `count` most confident mistakes: image, "true → predicted", probability of the predicted.

    images: [N, H, W] uint8; heads: {head: (labels [N], probabilities [N, C])}. With several heads
    an image is a mistake where any head is wrong, as confident as the surest of those.
    """
    n, height, width = images.shape
    said = {head: probabilities.argmax(-1) for head, (_, probabilities) in heads.items()}
    sure = {head: probabilities.max(-1) for head, (_, probabilities) in heads.items()}
    wrong = {head: said[head] != labels for head, (labels, _) in heads.items()}
    confidence = np.max([np.where(wrong[head], sure[head], 0) for head in heads], axis=0)
    total = int(np.count_nonzero(confidence))
    shown = np.argsort(np.negative(confidence), kind="stable")[: min(count, total)]
    if not total:
        with page(path, 8, 0.6) as figure:
            text = noted(f"no mistakes in {n:,} images", note)
            figure.text(0.5, 0.5, text, ha="center", va="center")
        return
    wide, tall = width > height, width < height
    columns, gap, inset = (8, 14, 7) if wide else (8, 12, 2) if tall else (10, 4, 2)
    # Captions of 7 points need about 0.15 inches a line; an inch is this many mosaic pixels.
    inch = columns * (width + gap) / 8
    foot = round(0.15 * inch * len(heads) + 0.04 * inch)
    captions = []
    for k, i in enumerate(shown):
        x = k % columns * (width + gap) + inset
        y = k // columns * (height + 4 + foot) + height + 4
        lines = []
        for head, (labels, probabilities) in heads.items():
            if wrong[head][i]:
                names = class_names(probabilities.shape[-1])
                which = f"{head} " if len(heads) > 1 else ""
                text = f"{which}{names[labels[i]]}→{names[said[head][i]]}"
                lines.append((text, _percent(sure[head][i])))
        left, right = ("\n".join(column) for column in zip(*lines, strict=True))
        captions.append((x, y, left, INK, "left"))
        captions.append((x + width + gap - 2 * inset, y, right, FAINT, "right"))
    which = f"The {count} most confident of" if count < total else "All"
    title = noted(f"{which} {total:,} mistakes in {n:,} images", note)
    _draw_mosaic(path, _mosaic(images[shown], columns, gap, foot), title, captions)


def sheet(images: np.ndarray, path: str | os.PathLike, columns: int) -> None:
    """A contact sheet of images [N, H, W] uint8, ink on paper."""
    _draw_mosaic(path, _mosaic(images, columns, 4, 0), "", [])


@contextmanager
def _canvas(path: str | os.PathLike, width: float, height: float, title: str) -> Iterator[Any]:
    """A page under one title, to place images and text on: axes in inches, from the upper left."""
    with page(path, width, height) as figure:
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        ax.set_axis_off()
        ax.text(0.065, 0.17, title, va="center", fontweight="bold")
        yield ax


def _place(ax: Any, image: np.ndarray, x: float, y: float, width: float, **how: Any) -> None:
    """Draws `image` [H, W] with its upper left corner at (x, y), in a thin frame."""
    height = width * image.shape[0] / image.shape[1]
    box = (x, x + width, y + height, y)
    ax.imshow(image, extent=box, aspect="auto", interpolation="nearest", **how)
    ax.plot([x, x + width, x + width, x, x], [y, y, y + height, y + height, y], color=GRID, lw=0.6)


def signed_maps(blocks: dict[str, np.ndarray], path: str | os.PathLike, title: str) -> None:
    """Blocks of small maps, blue below 0 and orange above it.

    blocks: {title: [N, H, W] float}. Each block has its own scale, white at 0 and as far to either
    side as its largest magnitude, which is written above it.
    """
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("signed", SIGNED)
    gap, layout, page = 0.065, [], 0.3
    for maps in blocks.values():
        n, height, width = maps.shape
        lines = -(-n // (8 if width > height else 12))
        columns = max(-(-n // lines), 8)
        cell = (8 - gap) / columns
        tall = (cell - gap) * height / width + gap
        layout.append((page, columns, cell, tall))
        page += 0.25 + lines * tall + 0.1
    with _canvas(path, 8, page, title) as ax:
        for x, text, colour in ((7.3, "negative", BLUE), (7.935, "positive", ORANGE)):
            ax.text(x, 0.17, text, color=colour, ha="right", va="center")
        for (name, maps), (top, columns, cell, tall) in zip(blocks.items(), layout, strict=True):
            most = np.abs(maps).max() or 1
            ax.text(gap, top + 0.12, name, va="center")
            ax.text(8 - gap, top + 0.12, f"±{most:.2g}", color=FAINT, ha="right", va="center")
            for i, image in enumerate(maps):
                x, y = gap + i % columns * cell, top + 0.25 + i // columns * tall
                _place(ax, image, x, y, cell - gap, cmap=colours, vmin=-most, vmax=most)


def attribution(
    image: np.ndarray,
    heads: dict[str, tuple[int, np.ndarray, dict[str, np.ndarray]]],
    path: str | os.PathLike,
    title: str,
) -> None:
    """A row per head: the image as "true → predicted, probability", then where the head looks.

    image: [H, W] uint8; heads: {head: (label, probabilities [C], {title: map [H, W] float})}. The
    maps, from 0 up, are drawn over the faded image, the deeper the larger.
    """
    from matplotlib.colors import LinearSegmentedColormap

    heat = LinearSegmentedColormap.from_list("heat", HEAT)
    height, width = image.shape
    gap = 0.065
    wide = (8 / 3 - 2 * gap) * width / max(height, width)
    pitch = max(wide + 2 * gap, 2)  # room for "Grad-CAM of Residual_1/Conv_2"
    tall = 0.25 + wide * height / width + 0.15
    columns = 1 + max(len(maps) for *_, maps in heads.values())
    with _canvas(path, columns * pitch, 0.3 + len(heads) * tall, title) as ax:
        ink = {"cmap": "gray_r", "vmin": 0, "vmax": 255}
        for row, (head, (label, probabilities, maps)) in enumerate(heads.items()):
            y, said = 0.3 + row * tall, probabilities.argmax()
            names = class_names(len(probabilities))
            which = f"{head} " if len(heads) > 1 else ""
            sure = _percent(probabilities[said])
            ax.text(gap, y + 0.12, f"{which}{names[label]} → {names[said]}, {sure}", va="center")
            _place(ax, image, gap, y + 0.25, wide, **ink)
            for column, (name, strength) in enumerate(maps.items(), 1):
                x = column * pitch + gap
                depth = strength / (strength.max() or 1)
                ax.text(x, y + 0.12, name, va="center")
                _place(ax, image * 0.3, x, y + 0.25, wide, **ink)
                _place(ax, depth, x, y + 0.25, wide, cmap=heat, alpha=depth, vmin=0, vmax=1)


def frontier(points: Rows, path: str | os.PathLike) -> None:
    """Test accuracy over parameters, with the 95 % interval of the mean and the quoted figures.

    A step of the line is where no smaller network of the data set has a better mean.
    points: {"run", "dataset", "parameters", "mean", "half" (or None), "quoted" (a list, by head)},
    fractions all. The accuracy axis is logarithmic in the error.
    """
    from matplotlib.patheffects import withStroke

    colours = {"mnist": BLUE, "mnist100": ORANGE, "two_digit": TEAL}
    halo = withStroke(linewidth=2, foreground="white")  # for lines run behind the labels
    with page(path, 8, 5.2) as figure:
        ax = figure.subplots()
        ax.set_xscale("log")
        errors: list[float] = []
        taken: list[tuple[float, float]] = []
        for point in sorted(points, key=lambda p: -p["mean"]):
            x, error = point["parameters"], max(100 * (1 - point["mean"]), LEAST_ERROR)
            colour = colours.get(point["dataset"], INK)
            half = np.asarray([[100 * (point["half"] or 0)]] * 2).clip(max=[[error / 2], [np.inf]])
            ax.errorbar(x, error, half, fmt="o", color=colour, elinewidth=1, capsize=2)
            errors += [error, error - half[0, 0]]
            if point["quoted"]:
                quoted = max(100 * (1 - float(np.mean(point["quoted"]))), LEAST_ERROR)
                errors.append(quoted)
                ax.plot([x, x], [error, quoted], color=colour, lw=0.6, alpha=0.5)
                ax.plot(x, quoted, "D", markersize=4, markerfacecolor="white", color=colour)
            spot = (np.log(x) / 0.9, np.log(error) / 0.09)  # in widths of a label and lines
            while any(abs(spot[0] - a) < 1 and abs(spot[1] - b) < 1 for a, b in taken):
                spot = (spot[0], spot[1] + 0.25)
            taken.append(spot)
            ax.annotate(
                point["run"],
                (x, np.exp(spot[1] * 0.09)),
                (5, 0),
                textcoords="offset points",
                fontsize=6,
                color=colour,
                va="center",
                path_effects=[halo],
            )
        _error_axis(ax, np.asarray(errors))
        for dataset, colour in colours.items():
            ax.plot([], [], "o", color=colour, label=dataset)
            steps = record_steps([p for p in points if p["dataset"] == dataset])
            if len(steps) > 1:
                sizes, means = np.transpose(steps)
                errors_of = np.maximum(100 * (1 - means), LEAST_ERROR)
                ax.step(sizes, errors_of, where="post", color=colour, lw=0.8, alpha=0.5, zorder=0)
        ax.plot([], [], "D", markerfacecolor="white", color=FAINT, label="quoted")
        ax.legend(loc="lower center", ncols=4, labelcolor=INK)
        ax.set_xlim(right=ax.get_xlim()[1] * 1.6)  # room for the last label
        ax.set_title("Test accuracy, %")
        ax.set_xlabel("parameters")


def record_steps(points: Rows) -> list[tuple[int, float]]:
    """(parameters, mean) of the points that are better than all of that size or smaller."""
    steps: list[tuple[int, float]] = []
    for point in sorted(points, key=lambda p: (p["parameters"], -p["mean"])):
        if not steps or point["mean"] > steps[-1][1]:
            steps.append((point["parameters"], point["mean"]))
    return steps


def learning(runs: Mapping[str, Rows], path: str | os.PathLike) -> None:
    """Validation accuracy by epoch, a panel a run: the members' mean, and from least to greatest.

    The training accuracy beside it, as it was evaluated or, without validation, as trained.
    """
    from matplotlib.ticker import MaxNLocator

    columns = 4
    lines = -(-len(runs) // columns)
    with page(path, 8, 1.6 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in panels[len(runs) :]:
            ax.axis("off")
        for ax, (run, rows) in zip(panels, runs.items(), strict=False):
            drawn = []
            trained = "train_accuracy" if "train_accuracy" in rows[0] else "accuracy"
            for name, colour in ((trained, BLUE), ("validation_accuracy", ORANGE)):

                def error(row: dict[str, Any], key: str = name) -> float:
                    return max(100 * (1 - row[key]), LEAST_ERROR)

                line = _series(rows, error)
                if line.size:
                    ax.plot(*line[:, :2].T, color=colour, lw=1.2)
                    ax.fill_between(line[:, 0], *line[:, 2:].T, color=colour, alpha=0.2, lw=0)
                    drawn.append(line[:, 1:].ravel())
            if drawn:
                _error_axis(ax, np.concatenate(drawn))
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.set_title(run, fontsize=7)
            ax.tick_params(labelsize=6)
        figure.supxlabel("epoch", fontsize=7, color=FAINT)
        figure.suptitle(
            "Accuracy, %: training (blue) and validation (orange), all seeds",
            fontsize=9,
            x=0.02,
            ha="left",
            weight="bold",
        )


def robustness(
    found: Mapping[str, Mapping[str, Mapping[str, Any]]],
    clean: Mapping[str, Any],
    shown: Mapping[str, Sequence[np.ndarray]],
    path: str | os.PathLike,
    note: str = "",
) -> None:
    """Accuracy over the level of each corruption, a panel each, and above it what it does.

    found: {corruption: {level: {"mean", "std"}}}; clean: {"mean", "std"} without any; shown, in the
    same order: {title: an image [H, W] uint8 of each level}.
    """
    with page(path, 8, 4.4) as figure:
        rows = figure.subplots(4, 3, height_ratios=(1, 3, 1, 3)).reshape(2, 2, 3)
        strips, panels = rows[:, 0].ravel(), rows[:, 1].ravel()
        errors: list[np.ndarray] = []
        for strip, ax, levels, (title, images) in zip(
            strips, panels, found.values(), shown.items(), strict=True
        ):
            strip.imshow(np.hstack(list(images)), cmap="gray_r", vmin=0, vmax=255)
            strip.set_axis_off()
            strip.set_title(title)
            x = [0.0, *map(float, levels)]
            mean, spread = np.array(
                [(at["mean"], at["std"] or 0) for at in (clean, *levels.values())]
            ).T
            middle, low, high = (
                np.maximum(100 * (1 - y), LEAST_ERROR) for y in (mean, mean + spread, mean - spread)
            )
            ax.plot(x, middle, "o-", color=BLUE)
            ax.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0)
            ax.set_xticks(x)
            errors += [low, high]
        for ax in panels:
            _error_axis(ax, np.concatenate(errors))
        for row in panels.reshape(2, 3):
            row[0].set_ylabel(noted("test accuracy, %", note))


def reliability(
    diagrams: dict[str, tuple[Any, Any]], path: str | os.PathLike, note: str = ""
) -> None:
    """Accuracy over confidence, by bin: a panel for each {who: (as predicted, tempered)}.

    Of `stats.Reliability`. Where predictions are worth what they say, points lie on the diagonal;
    their area grows with the examples in the bin.
    """
    with page(path, 3.2 * len(diagrams), 3.2) as figure:
        panels = figure.subplots(1, len(diagrams), squeeze=False)[0]
        for ax, (who, pair) in zip(panels, diagrams.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=1)
            for bins, label, colour in zip(
                pair, ("as predicted", "with temperature"), (ORANGE, BLUE), strict=True
            ):
                some = bins.examples > 0
                area = 6 + 60 * np.sqrt(bins.examples[some] / bins.examples.sum())
                text = f"{label}, ECE {100 * bins.error:.2f} %"
                ax.plot(bins.confidence[some], bins.accuracy[some], color=colour, lw=1, label=text)
                ax.scatter(bins.confidence[some], bins.accuracy[some], area, color=colour)
            ax.set(xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
            ax.set_xlabel("confidence")
            ax.set_title(noted(f"{who}: accuracy", note))
            ax.grid(axis="y")
            ax.legend(loc="lower right")


def search(
    points: Rows,
    fields: Sequence[str],
    logs: Collection[str],
    importances: dict[str, float],
    path: str | os.PathLike,
    note: str = "",
) -> None:
    """The trials of a search: in order, over each field, and what mattered.

    points: {"trial", "value", "pruned"} and a value by field, each; logs: fields of a logarithmic
    range; importances: shares by field, empty where they are not known yet. The accuracy axes are
    logarithmic in the error, as in `curves`.
    """
    from matplotlib.ticker import NullFormatter

    panels_of = ["trial", *fields] + (["importance"] if importances else [])
    columns = min(len(panels_of), 3)
    lines = -(-len(panels_of) // columns)
    values = np.asarray([100 * (p["value"] or 0) for p in points])
    pruned = np.asarray([p["pruned"] for p in points], bool)
    with page(path, 2.7 * columns, 2.4 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in panels[len(panels_of) :]:
            ax.axis("off")
        for ax, field in zip(panels, panels_of, strict=False):
            ax.set_title(field)
            if field == "importance":
                names = sorted(importances, key=lambda name: importances[name])
                short = [name.rpartition(".")[2] for name in names]
                ax.barh(short, [importances[name] for name in names], color=TEAL)
                continue
            x: Any = [p[field] for p in points]
            if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in x):
                x = [str(v) for v in x]
            error = np.maximum(100 - values, LEAST_ERROR)
            for mask, colour in ((pruned, FAINT), (~pruned, BLUE)):
                chosen = [v for v, keep in zip(x, mask, strict=True) if keep]
                ax.scatter(chosen, error[mask], 14, color=colour)
            if field == "trial":
                ax.plot(x, np.minimum.accumulate(error), color=ORANGE, drawstyle="steps-post")
            if field in logs and min(x) > 0:
                ax.set_xscale("log")
                ax.xaxis.set_minor_formatter(NullFormatter())
            _error_axis(ax, error)
        panels[0].set_ylabel(noted("validation accuracy, %", note))
