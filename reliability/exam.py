"""How well photographs that a program makes are read.

python -m reliability.exam [--split=development] [--count=200] [--seed=0] [--raw_dir=FOLDER]
    [--reader=results/demo] [--kinds=clean,blur] [--into=FOLDER] [--pictures=FOLDER]

Development photographs are of MNIST's validation digits and of the kinds in
photographs.DEVELOPMENT. Those of the exam are of MNIST's test digits and of digits drawn by a
program, in turns, and of all kinds. It also reads images of what is no digit, of kinds that no run
trains on, of what may be one, and MNIST's test images as they are. An exam is taken once: the next
one has other held-out kinds and another seed.

With `--into` a row is kept in FOLDER/reading.jsonl as soon as it is measured, and is not measured
again; `--report` makes FOLDER/reading.md and reading.png of these rows. With `--pictures` the
photographs are written as PNG files, named after their digits, and nothing is read.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from jax import random
from PIL import Image, ImageDraw

import digits_jax
from digits_jax import files
from digits_jax.analysis.read import shown_of
from digits_jax.console import console, percent, track
from digits_jax.data import dataset, drawn, nondigits, numbers, pictures, recipes, sources
from digits_jax.devices import backend
from digits_jax.report import artifacts, figures
from digits_jax.training import reader
from digits_jax.training.predictor import Predictor
from digits_jax.types import Digits
from reliability import photographs

SPLITS = {"development": photographs.DEVELOPMENT, "exam": photographs.KINDS}
DRAWN_SEED, NONDIGITS_SEED = 1_000_003, 1_000_004  # no run trains on these
NONDIGITS, ALIKE = (Path(__file__).with_name(f"{name}.json") for name in ("nondigits", "alike"))
ROWS, REPORT, FAILURES = "reading.jsonl", "reading.md", "reading.png"
SHOWN = 20  # failures in FAILURES
Row = dict[str, Any]

_SPLIT = flags.DEFINE_enum("split", "development", list(SPLITS), "Of which digits and kinds.")
_COUNT = flags.DEFINE_integer("count", 200, "Photographs of each kind and layout.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the photographs.")
_RAW_DIR = flags.DEFINE_string("raw_dir", "", "MNIST's files; '' for the cache, or a download.")
_READER = flags.DEFINE_string("reader", "results/demo", "The run that reads.")
_KINDS = flags.DEFINE_list("kinds", [], "Only these kinds; by default all of the split.")
_INTO = flags.DEFINE_string("into", "", "A folder for the rows; '' prints them only.")
_REPORT = flags.DEFINE_bool("report", False, "Only write the report of the rows in --into.")
_PICTURES = flags.DEFINE_string("pictures", "", "A folder: only write the photographs there.")


class Photo(NamedTuple):
    """pixels: [h, w, 3] uint8; text: its digits, a line each; source: whose digits they are."""

    pixels: np.ndarray
    text: str
    source: str


def digits(split: str, mnist: tuple[Digits, Digits], n_drawn: int = 10_000) -> dict[str, Digits]:
    """The digits of which a split's photographs are made, by their source.

    mnist: its training and test digits.
    """
    train, test = mnist
    if split == "exam":
        return {"mnist": test, "drawn": drawn.digits(DRAWN_SEED, n_drawn)}
    rng = recipes.generator(0, "split")  # as runs of seed 0 hold them out
    _, held_out = recipes.split_digits(rng, len(train.labels), 0.1)
    return {"mnist": Digits(train.images[held_out], train.labels[held_out])}


def photo(
    sources: dict[str, Digits], split: str, kind: str, layout: str, i: int, seed: int = 0
) -> Photo:
    """The i-th photograph, of the sources in turns; it depends on the seed and its place alone."""
    place = [list(SPLITS).index(split), list(photographs.KINDS).index(kind)]
    place.append(photographs.LAYOUTS.index(layout))
    source = list(sources)[i % len(sources)]
    images, labels = map(np.asarray, sources[source])
    rng = np.random.default_rng([seed, *place, i])
    return Photo(*photographs.picture(rng, kind, images, labels, layout), source)


def measured(read: Callable[[np.ndarray], str], photos: Iterator[Photo]) -> list[Row]:
    """A row for each source: of how many photographs the text is right, and of how many it has a
    `?`.

    found: as many characters in every line as there are digits. failures: [place among the
    photographs, what was read] of each that is misread.
    """
    rows = dict[str, Row]()
    for i, (pixels, truth, source) in enumerate(photos):
        text = read(pixels)
        row = rows.setdefault(
            source, dict.fromkeys(("photographs", "right", "refused", "found"), 0)
        )
        row["photographs"] += 1
        row["right"] += text == truth
        row["refused"] += reader.REFUSED in text
        row["found"] += [*map(len, text.split("\n"))] == [*map(len, truth.split("\n"))]
        row["failures"] = row.get("failures", []) + [[i, text]] * (text != truth)
    return [{"source": source, **row} for source, row in rows.items()]


def _signature(rng: np.random.Generator) -> np.ndarray:
    """[120, 300] uint8: a wave that begins high and goes on for a few letters."""
    count = 2 * rng.integers(5, 9)
    x = 20 + 260 * (np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count
    y = 70 + np.resize([-1, 1], count) * rng.uniform(8, 30, count)
    y[0] = 15
    paper, basis = Image.new("L", (300, 120)), drawn.curve_basis(np.zeros(count), 300)
    line = (basis @ np.stack([x, y], axis=1)).ravel().tolist()
    ImageDraw.Draw(paper).line(line, fill=255, width=int(rng.integers(4, 9)), joint="curve")
    return np.asarray(paper)


def _hatching(rng: np.random.Generator) -> np.ndarray:
    """[200, 200] uint8: parallel strokes and one across them."""
    count, slant = rng.integers(6, 10), rng.uniform(-30, 30)
    x = np.linspace(40, 160, count) + rng.uniform(-4, 4, count)
    tops, bottoms = rng.uniform(20, 45, count), rng.uniform(155, 180, count)
    strokes = [*np.stack([x + slant, tops, x - slant, bottoms], axis=1)]
    strokes.append(np.array([15, rng.uniform(70, 130), 185, rng.uniform(70, 130)]))
    paper, width = Image.new("L", (200, 200)), int(rng.integers(4, 8))
    for each in strokes:
        ImageDraw.Draw(paper).line(each.tolist(), fill=255, width=width)
    return np.asarray(paper)


MADE = {"signature": _signature, "hatching": _hatching}  # further kinds of what is no digit


def nondigit(kind: str, count: int) -> Iterator[np.ndarray]:
    """`count` pictures [h, w] uint8 of what is no digit or may be one, dark on white paper."""
    rng = np.random.default_rng(NONDIGITS_SEED)
    if kind in MADE:
        images = [MADE[kind](rng) for _ in range(count)]
    else:
        path = ALIKE if kind in nondigits.kinds(ALIKE) else NONDIGITS
        label = nondigits.kinds(path).index(kind)
        key = random.fold_in(random.key(NONDIGITS_SEED), label)
        small = drawn.draw(key, np.full(count, label), path=path)
        images = [
            np.asarray(Image.fromarray(image).resize((140, 140))) for image in np.asarray(small)
        ]
    for image in images:
        yield 255 - np.pad(image, 150)


def refused(read: Callable[[np.ndarray], str], pictures: Iterator[np.ndarray]) -> list[Row]:
    """Of how many pictures nothing but `?` is read."""
    texts = [read(picture).replace("\n", "") for picture in pictures]
    count = sum(bool(text) and set(text) == {reader.REFUSED} for text in texts)
    return [{"photographs": len(texts), "refused": count}]


def of_mnist(run: Predictor, test: Digits) -> list[Row]:
    """MNIST's test images: those read right before refusing, and those refused."""
    images = np.asarray(numbers.widened(np.asarray(test.images)))
    log_p = artifacts.averaged(run.predict(images, 100))
    said = (log_p, run.temperature[-1], run.classes)
    texts = ["".join(name for name, _ in each) for each in reader.symbols(*said)]
    no = [each[0][0] == reader.REFUSED for each in reader.symbols(*said, run.threshold)]
    right = int(np.sum(np.array(texts) == np.asarray(test.labels).astype(str)))
    return [{"photographs": len(texts), "right": right, "refused": sum(no)}]


def sentence(row: Row) -> str:
    """A row as it is printed."""
    name = " ".join(str(row[key]) for key in ("kind", "layout", "source") if key in row)
    shares = [
        f"{what} {percent(row[what] / row['photographs'])}"
        for what in ("right", "refused", "found")
        if what in row
    ]
    return f"{name}: {', '.join(shares)} of {row['photographs']:,}"


def table(rows: list[Row]) -> str:
    """Markdown: a line for each kind and one for those developed on and one for those held out, a
    column for each layout and source.
    """
    columns = list(dict.fromkeys((row["layout"], row["source"]) for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    lines = [["kind", *map(", ".join, columns)], ["---", *["---:"] * len(columns)]]
    new = [kind for kind in kinds if kind in photographs.HELD_OUT]
    groups = {"**developed on**": [kind for kind in kinds if kind not in new], "**held out**": new}
    for name, chosen in [*((kind, [kind]) for kind in kinds), *groups.items()]:
        line = [name]
        for column in columns:
            cell = [r for r in rows if r["kind"] in chosen and (r["layout"], r["source"]) == column]
            right, no, count = (
                sum(r[k] for r in cell) for k in ("right", "refused", "photographs")
            )
            line.append(f"{percent(right / count)} ({percent(no / count)})" if count else "–")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


INTRO = """# Reading photographs

Made by `python -m reliability.exam --split=exam --seed={seed}` with the network of {workdir},
of photographs that a program makes by a seed: {each:,} of each kind and layout, half of MNIST's
test digits and half of digits that `digits_jax.data.drawn` draws. They show one digit, or one or
two lines of two to six digits, which are separate, or of which at least two touch. A photograph is
right if its whole text is right; in brackets are those with a `?` in what was read. The kinds
{held_out}
were in no development.
"""


def refusals(rows: list[Row]) -> str:
    """Markdown: for each kind and for all, of how many pictures nothing but `?` is read."""
    total: Row = {key: sum(row[key] for row in rows) for key in ("refused", "photographs")}
    lines = [
        f"| {row['kind']} | {percent(row['refused'] / row['photographs'])} |"
        for row in [*rows, {"kind": "**all**", **total}]
    ]
    return "\n".join(["| kind | `?` |", "| --- | ---: |", *lines])


def report(
    out: Path, rows: list[Row], reads: reader.Reader, again: Callable[[Row, int], Photo]
) -> None:
    """Writes REPORT and FAILURES; again: makes the i-th photograph of a row once more."""
    photos = [row for row in rows if "found" in row]
    strange, alike = (
        [row for row in rows if row["layout"] == layout] for layout in ("no digit", "alike")
    )
    mnist = next((row for row in rows if row["layout"] == "as they are"), None)
    if mnist is None or not alike:
        raise SystemExit(
            f"{out / ROWS} has not all rows of this exam; first take it without --report"
        )
    first = [row["photographs"] for row in photos if row["kind"] == photos[0]["kind"]]
    each = sum(first) // len(photographs.LAYOUTS)
    names = ", ".join(photographs.HELD_OUT)
    intro = INTRO.format(each=each, seed=_SEED.value, workdir=_READER.value, held_out=names)
    parts = [
        intro,
        table(photos),
        f"## What is no digit\n\nLetters, shapes and lines of kinds that no run trains on, "
        f"{strange[0]['photographs']} pictures of each: nothing but `?` is read.",
        refusals(strange),
        "## What may be a digit\n\nStrokes, a circle and letters that look like digits, which no "
        "run trains on, either: a digit is no error here.",
        refusals(alike),
        "## MNIST's test images\n\n"
        f"{percent(mnist['right'] / mnist['photographs'])} are read right before any is refused; "
        f"{percent(mnist['refused'] / mnist['photographs'])} are refused.",
        f"## {SHOWN} photographs that are misread\n\n![Photographs that are misread]({FAILURES})",
    ]
    files.write_text(out / REPORT, "\n\n".join(part.strip() for part in parts) + "\n")
    failed = [(row, failure) for row in photos for failure in row["failures"][:1]]
    step = max(len(failed) / SHOWN, 1)
    shown = []
    for row, (place, _) in [failed[int(k * step)] for k in range(min(SHOWN, len(failed)))]:
        made = again(row, place)
        picture = pictures.opened(made.pixels)
        name = f"{row['kind']}, {row['layout']}"
        label = made.text.replace("\n", "")
        shown.append(shown_of(name, picture, reads.picture(picture), label))
    figures.readings(shown, out / FAILURES)
    Image.open(out / FAILURES).quantize(128).save(out / FAILURES, optimize=True)


def write(photos: Iterator[Photo], folder: Path) -> None:
    """Photographs as PNG files, named after their digits."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, each in enumerate(photos):
        Image.fromarray(each.pixels).save(folder / f"{i}_{each.text.replace(chr(10), '-')}.png")


@backend.quiet()
def main(_: list[str]) -> None:
    split, seed, out = _SPLIT.value, _SEED.value, Path(_INTO.value)
    mnist = sources.load(_RAW_DIR.value, dataset.cache_dir(digits_jax.get_base("exam").data))
    of = digits(split, mnist)
    run = Predictor(_READER.value)
    reads = reader.Reader(run)
    this = {"split": split, "seed": seed, "count": _COUNT.value, "weights": run.digest()[:16]}
    kept = _INTO.value and (out / ROWS).exists()
    lines = (out / ROWS).read_text(encoding="utf-8").splitlines() if kept else []
    rows = [row for row in map(json.loads, lines) if this.items() <= row.items()]
    if _REPORT.value:
        again = functools.partial(photo, of, split, seed=seed)
        report(out, rows, reads, lambda row, i: again(row["kind"], row["layout"], i))
        return
    done = {(row["kind"], row["layout"]) for row in rows}

    def read(picture: np.ndarray) -> str:
        return reads.picture(picture).text

    def keep(kind: str, layout: str, measure: Callable[[], list[Row]]) -> None:
        if (kind, layout) not in done:
            found = [{"kind": kind, "layout": layout, **this, **row} for row in measure()]
            console.print(*map(sentence, found), sep="\n")
            if _INTO.value:
                files.append_rows(out / ROWS, found)

    for kind in _KINDS.value or SPLITS[split]:
        for layout in photographs.LAYOUTS:
            of_kind = functools.partial(photo, of, split, kind, layout, seed=seed)
            if _PICTURES.value:
                write(map(of_kind, range(_COUNT.value)), Path(_PICTURES.value) / kind / layout)
                continue
            photos = map(of_kind, track(range(_COUNT.value), f"{kind}, {layout}"))
            keep(kind, layout, functools.partial(measured, read, photos))
    if split == "exam" and not (_KINDS.value or _PICTURES.value):
        strange = dict.fromkeys((*nondigits.kinds(NONDIGITS), *MADE), "no digit")
        for kind, layout in (strange | dict.fromkeys(nondigits.kinds(ALIKE), "alike")).items():
            keep(kind, layout, functools.partial(refused, read, nondigit(kind, _COUNT.value)))
        keep("MNIST's test images", "as they are", functools.partial(of_mnist, run, mnist[1]))


if __name__ == "__main__":
    app.run(main)
