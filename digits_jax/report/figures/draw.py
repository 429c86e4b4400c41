"""The page, colours, axes and lines that several pictures share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]
Style = dict[str, Any]  # keywords of matplotlib

INK, FAINT, GRID = "#1f2a37", "#7b8794", "#e7eaee"
BLUE, ORANGE, TEAL = "#2b6cb0", "#dd6b20", "#2c7a7b"
HEAT = ("#fbe3d0", "#ee9a5c", "#c2410c", "#7a2308")
SIGNED = ("#153e75", BLUE, "#ffffff", ORANGE, "#7a2308")
LEAST_LOSS, LEAST_ERROR = 1e-4, 0.01  # smaller values are drawn here: the axes are logarithmic
LOG, LOG_ERROR = "log scale", "log scale of the error"  # what the labels of uneven axes say
TICKS = [m * 10.0**k for k in range(-7, 31) for m in (1, 2, 5)]
STYLE = Path(__file__).with_name("figures.mplstyle")


@contextmanager
def page(path: Path, width: float, height: float, note: str = "") -> Iterator[Figure]:
    """An empty figure, in inches, that is written to `path` when all is drawn.

    note: what is to be said about the picture's digits, such as that they are drawn; it stands once
    at the top right.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(fname=STYLE):
        figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
        if note:
            figure.suptitle(note, x=0.992, ha="right", fontsize=8, color=FAINT)
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def noted(title: str, note: str) -> str:
    """A title with a note about the picture's digits, such as that they are drawn."""
    return f"{title}, {note}" if note else title


def shortened(text: str, width: float, size: float = 8) -> str:
    """`text`, cut and with an ellipsis where it is wider than `width` inches at `size` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    def fits(words: str) -> bool:
        font = FontProperties(size=size)
        points, _, _ = text_to_path.get_text_width_height_descent(words, font, ismath=False)
        return points <= 72 * width

    for end in range(len(text), 0, -1):
        shown = text if end == len(text) else f"{text[:end].rstrip()}…"
        if fits(shown):
            return shown
    return "…"


def colormap(colours: Sequence[str]) -> Colormap:
    """A colormap from the first colour to the last."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", colours)


def grid_of_panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """`count` axes, row by row in `columns` columns."""
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
    for ax in panels[count:]:
        ax.axis("off")
    return list(panels[:count])


def without_frame(*panels: Axes) -> None:
    """Hides frame and tick marks."""
    for ax in panels:
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)


def epoch_axis(ax: Axes, ticks: int) -> None:
    """An x axis with whole epochs."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, min_n_ticks=1))


def log_axis(ax: Axes, values: Sequence[np.ndarray], label: Callable[[float], str]) -> None:
    """A logarithmic y axis that begins and ends at a tick (1, 2 or 5 times a power of ten)."""
    if not (flat := np.concatenate([np.ravel(v) for v in values])).size:
        return
    first = np.searchsorted(TICKS, flat.min() * 1.0001, side="right") - 1
    last = np.searchsorted(TICKS, flat.max() * 0.9999)
    shown = TICKS[max(first, 0) : max(last, first + 1) + 1]
    ax.set(yscale="log", ylim=(shown[0], shown[-1]))
    if len(shown) > 9:
        shown = [tick for tick in shown if f"{tick:e}".startswith("1")]
    ax.set_yticks(shown, [label(tick) for tick in shown])
    ax.set_yticks([], minor=True)


def error(accuracy: Any) -> Any:
    """The error in percent of an accuracy, or of an array of them, as `error_axis` draws it."""
    return np.maximum(100 * (1 - accuracy), LEAST_ERROR)


def error_axis(ax: Axes, errors: Sequence[np.ndarray]) -> None:
    """An accuracy axis, logarithmic in the error: 99.0 and 99.5 as far apart as 90 and 95."""
    log_axis(ax, errors, lambda y: f"{'≥' if y <= LEAST_ERROR else ''}{100 - y:g}")
    ax.invert_yaxis()
    ax.grid(visible=True, axis="y")


def series(rows: Rows, key: str, change: Callable[[float], float]) -> np.ndarray:
    """[E, 4] float64: epoch, then mean, least and greatest over its members of a changed value.

    Rows where the value is missing or not finite are left out.
    """
    epochs: dict[int, list[float]] = {}
    for row in rows:
        if row.get(key) is not None and np.isfinite(value := change(row[key])):
            epochs.setdefault(row["epoch"], []).append(value)
    table = [(e, np.mean(v), np.min(v), np.max(v)) for e, v in sorted(epochs.items())]
    return np.array(table, np.float64).reshape(-1, 4)


def band(ax: Axes, line: np.ndarray, colour: str, **style: Any) -> None:
    """Draws `line` [N, 4]: x, y, and the least and greatest y, between which it is shaded."""
    x, middle, low, high = line.T
    ax.plot(x, middle, color=colour, **style)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
