"""Pictures made of images: mistakes, contact sheets, filters, attributions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from digits_jax.report.figures import draw
from digits_jax.report.figures.draw import BLUE, FAINT, GRID, HEAT, INK, ORANGE, SIGNED, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP, _HEAD, _LINE = 0.065, 0.3, 0.15  # inches: between images, of the title, of a caption's line
_ON_PAPER: Style = {"cmap": "gray_r", "vmin": 0, "vmax": 255}


class Part(NamedTuple):
    """A piece of ink. box: left, top, right, bottom in px; image: [28, W] uint8; text: below it."""

    box: np.ndarray
    image: np.ndarray
    text: str


class Shown(NamedTuple):
    """A picture that was read. pixels: [h, w, 3] uint8; wrong: is the title of a mistake?"""

    pixels: np.ndarray
    title: str
    wrong: bool
    parts: list[Part]


@contextmanager
def _canvas(path: Path, width: float, height: float, title: str) -> Iterator[Axes]:
    """A page under one title, to place images and text on: axes in inches, from the upper left."""
    with draw.page(path, width, height) as figure:
        figure.set_layout_engine("none")
        ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        ax.set_axis_off()
        ax.text(_GAP, 0.17, title, va="center", fontweight="bold")
        yield ax


def _place(
    ax: Axes, image: np.ndarray, x: float, y: float, width: float, frame: bool = True, **how: Any
) -> None:
    """Draws `image` [H, W] with its upper left corner at (x, y), in a thin frame."""
    right, bottom = x + width, y + width * image.shape[0] / image.shape[1]
    box = (x, right, bottom, y)
    ax.imshow(image, extent=box, aspect="auto", interpolation="nearest", **how)
    if frame:
        ax.plot([x, right, right, x, x], [y, y, bottom, bottom, y], color=GRID, lw=0.6)


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


def sheet(images: np.ndarray, path: Path, columns: int, title: str) -> None:
    """A contact sheet of images [N, H, W] uint8, ink on paper; pairs are apart from each other."""
    _, height, width = images.shape
    mosaic = _mosaic(images, columns, 20 if width > height else 4, 8 if width < height else 0)
    with _canvas(path, 8, _HEAD + 8 * mosaic.shape[0] / mosaic.shape[1], title) as ax:
        _place(ax, mosaic, 0, _HEAD, 8, frame=False, **_ON_PAPER)


def errors(
    images: np.ndarray,
    heads: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: Mapping[str, Sequence[str]],
    path: Path,
    count: int = 40,
    note: str = "",
) -> None:
    """The `count` most confident mistakes: image, "true → predicted", probability of the predicted.

    images: [N, H, W] uint8; heads: {head: (labels [N], probabilities [N, C])}; classes: {head:
    their names}. It is a mistake where any head is wrong; its confidence is the highest of them.
    """
    n, height, width = images.shape
    wrong = {head: p.argmax(-1) != labels for head, (labels, p) in heads.items()}
    confidence = np.max([wrong[head] * p.max(-1) for head, (_, p) in heads.items()], axis=0)
    total = int(np.count_nonzero(confidence))
    if not total:
        with draw.page(path, 8, 0.6) as figure:
            text = draw.noted(f"no mistakes in {n:,} images", note)
            figure.text(0.5, 0.5, text, ha="center", va="center")
        return
    shown = np.argsort(-confidence, kind="stable")[: min(count, total)]
    wide, tall = width > height, width < height
    columns, gap, inset = (8, 14, 7) if wide else (8, 12, 2) if tall else (10, 4, 2)
    size, certain = 7, 0.32  # points; inches for a probability
    captions = [
        [_result(classes, head, y[i], p[i]) for head, (y, p) in heads.items() if wrong[head][i]]
        for i in shown
    ]
    room = 8 / columns * (width + gap - 2 * inset) / (width + gap) - certain
    one_line = all(draw.shortened(c, room, size) == c for caption in captions for c in caption)
    if not one_line and not wide:
        columns, gap = 8, 12
    pixel = 8 / (columns * (width + gap))  # inches
    cell = pixel * (width + gap - 2 * inset)
    foot = round((_LINE * len(heads) * (1 if one_line else 2) + 0.04) / pixel)
    mosaic = _mosaic(images[shown], columns, gap, foot)
    which = f"The {count} most confident of" if count < total else "All"
    title = draw.noted(f"{which} {total:,} mistakes in {n:,} images", note)
    with _canvas(path, 8, _HEAD + pixel * mosaic.shape[0], title) as ax:
        _place(ax, mosaic, 0, _HEAD, 8, frame=False, **_ON_PAPER)
        ax.text(8 - _GAP, 0.17, "true → read, confidence", color=FAINT, ha="right", va="center")
        for k, (i, caption) in enumerate(zip(shown, captions, strict=True)):
            row, column = divmod(k, columns)
            x = pixel * (column * (width + gap) + inset + 0.5)
            y = pixel * (row * (height + 4 + foot) + height + 4.5) + _HEAD - 0.05
            sure = [p[i].max() for head, (_, p) in heads.items() if wrong[head][i]]
            for text, probability in zip(caption, sure, strict=True):
                if not one_line:
                    first, text = text.split("→", 1)
                    y += _LINE
                    ax.text(x, y, draw.shortened(first, cell, size), fontsize=size)
                    text = draw.shortened(f"→ {text}", cell - certain, size)
                y += _LINE
                ax.text(x, y, text, fontsize=size)
                right: Style = {"color": FAINT, "ha": "right", "fontsize": size}
                ax.text(x + cell, y, _percent(probability), **right)


def _result(
    classes: Mapping[str, Sequence[str]],
    head: str,
    label: int,
    probabilities: np.ndarray,
    arrow: str = "→",
) -> str:
    """'7→1', label and prediction; with the head's name where there are several."""
    names = classes[head]
    prefix = f"{head} " if len(classes) > 1 else ""
    return f"{prefix}{names[label]}{arrow}{names[int(probabilities.argmax())]}"


def _percent(probability: float) -> str:
    return ">99%" if probability > 0.995 else f"{probability:.0%}"


def signed_maps(blocks: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """Blocks of small maps, blue below 0, white at 0, orange above it.

    blocks: {title: [N, H, W] float}. The colours of a block end at its largest magnitude, which is
    written above it.
    """
    colours, layout, page_height = draw.colormap(SIGNED), [], _HEAD
    for maps in blocks.values():
        n, height, width = maps.shape
        lines = -(-n // (8 if width > height else 12))
        columns = max(-(-n // lines), 8)
        cell = (8 - _GAP) / columns
        tall = (cell - _GAP) * height / width + _GAP
        layout.append((page_height, columns, cell, tall))
        page_height += 0.25 + lines * tall + 0.1
    with _canvas(path, 8, page_height, title) as ax:
        for x, text, colour in ((7.3, "negative", BLUE), (7.935, "positive", ORANGE)):
            ax.text(x, 0.17, text, color=colour, ha="right", va="center")
        for (name, maps), (top, columns, cell, tall) in zip(blocks.items(), layout, strict=True):
            most = np.abs(maps).max() or 1
            ax.text(_GAP, top + 0.12, name, va="center")
            ax.text(8 - _GAP, top + 0.12, f"±{most:.2g}", color=FAINT, ha="right", va="center")
            how: Style = {"cmap": colours, "vmin": -most, "vmax": most}
            for i, image in enumerate(maps):
                x, y = _GAP + i % columns * cell, top + 0.25 + i // columns * tall
                _place(ax, image, x, y, cell - _GAP, **how)


def attribution(
    image: np.ndarray,
    heads: Mapping[str, tuple[int, np.ndarray, Mapping[str, np.ndarray]]],
    classes: Mapping[str, Sequence[str]],
    path: Path,
    title: str,
) -> None:
    """A row per head: the image as "true → predicted, probability", then its attribution maps.

    image: [H, W] uint8; heads: {head: (label, probabilities [C], {title: map [H, W] float})};
    classes: {head: their names}. The maps, at least 0, are drawn over the faded image, in deeper
    colours where they are larger; a scale below says so.
    """
    heat, (height, width) = draw.colormap(HEAT), image.shape
    wide = (8 / 3 - 2 * _GAP) * width / max(height, width)
    pitch = max(wide + 2 * _GAP, 2)  # room for "Grad-CAM of Residual_1/Conv_2"
    tall = 0.25 + wide * height / width + 0.15
    columns = 1 + max(len(maps) for *_, maps in heads.values())
    bottom = _HEAD + len(heads) * tall
    with _canvas(path, columns * pitch, bottom + 0.25, title) as ax:
        said: Style = {"color": FAINT, "va": "center", "fontsize": 7}
        ax.text(_GAP, bottom + 0.08, "colour: influence on the predicted class, none", **said)
        scale = np.tile(np.linspace(0, 1, 64), (10, 1))
        _place(ax, scale, 2.45, bottom + 0.035, 0.6, frame=False, cmap=heat, alpha=scale)
        ax.text(3.11, bottom + 0.08, "most", **said)
        for row, (head, (label, probabilities, maps)) in enumerate(heads.items()):
            y = _HEAD + row * tall
            text = _result(classes, head, label, probabilities, arrow=" → ")
            text = draw.shortened(f"{text}, {_percent(probabilities.max())}", pitch - _GAP)
            ax.text(_GAP, y + 0.12, text, va="center")
            _place(ax, image, _GAP, y + 0.25, wide, **_ON_PAPER)
            for column, (name, strength) in enumerate(maps.items(), 1):
                x = column * pitch + _GAP
                depth = strength / (strength.max() or 1)
                ax.text(x, y + 0.12, name, va="center")
                _place(ax, image * 0.3, x, y + 0.25, wide, **_ON_PAPER)
                how: Style = {"cmap": heat, "alpha": depth, "vmin": 0, "vmax": 1}
                _place(ax, depth, x, y + 0.25, wide, **how)


def readings(shown: Sequence[Shown], path: Path) -> None:
    """Each picture with a box around each piece of ink; below it the pieces as the network saw
    them, and what it said. Of very many pieces the first two rows.
    """
    columns = min(len(shown), 3)
    cell, tall = 8 / columns, (4.0, 2.6, 1.9)[columns - 1]
    side, lines = 0.36, 2  # inches of a piece; rows of them
    layout = []
    for each in shown:
        height, width = each.pixels.shape[:2]
        inches = min(cell - 2 * _GAP, tall * width / height)
        wide = [side * part.image.shape[1] / 28 + 0.1 for part in each.parts]
        places, x, line = [], 0.0, 0
        for part, room in zip(each.parts, wide, strict=True):
            if x + room > cell - _GAP and x:
                x, line = 0.0, line + 1
            if line == lines:
                break
            places.append((part, x, line * (side + 0.2)))
            x += room
        layout.append((inches, inches * height / width, places))
    foot = [(max((y for *_, y in places), default=-0.6) + side + 0.25) for *_, places in layout]
    rows = [range(i, min(i + columns, len(shown))) for i in range(0, len(shown), columns)]
    tops = [_HEAD + max(layout[i][1] for i in row) + max(foot[i] for i in row) for row in rows]
    with _canvas(path, 8, _HEAD + sum(tops), "What was read, and what the network saw") as ax:
        top = _HEAD
        for row, height in zip(rows, tops, strict=True):
            for i in row:
                _reading(ax, shown[i], (i - row.start) * cell + _GAP, top, cell, *layout[i])
            top += height


def _reading(
    ax: Axes,
    shown: Shown,
    left: float,
    top: float,
    cell: float,
    wide: float,
    tall: float,
    places: Sequence[tuple[Part, float, float]],
) -> None:
    """One of `readings`: its title at (left, top), the picture, its pieces."""
    text = draw.shortened(shown.title, cell - 2 * _GAP)
    ax.text(left, top + 0.12, text, va="center", color=ORANGE if shown.wrong else INK)
    top += 0.25
    _place(ax, shown.pixels, left, top, wide)
    for part in shown.parts:
        x0, y0, x1, y1 = part.box * (wide / shown.pixels.shape[1])
        x, y = np.array([x0, x1, x1, x0, x0]), np.array([y0, y0, y1, y1, y0])
        ax.plot(left + x, top + y, color=BLUE, lw=0.8)
    for part, right, down in places:
        across = 0.36 * part.image.shape[1] / 28
        at, below = left + right, top + tall + 0.06 + down
        _place(ax, part.image, at, below, across, **_ON_PAPER)
        ax.text(at + across / 2, below + 0.44, part.text, fontsize=5, ha="center", va="center")
