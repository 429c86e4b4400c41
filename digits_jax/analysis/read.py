"""Numbers of any length, read from the user's pictures."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax.analysis.evaluate import check_labels, say_score
from digits_jax.analysis.runs import open_run, writable
from digits_jax.console import console, status
from digits_jax.data import pictures
from digits_jax.errors import UserError, check_choice
from digits_jax.report import artifacts, figures
from digits_jax.training.predictor import Predictor
from digits_jax.training.reader import Reader, Reading, shipped

FOLDER = Path("runs") / "read"  # what is written without a run and without --out
TABLE, PICTURE = "readings.csv", "reading.png"
_SHOWN = 12  # pictures in PICTURE
_SHOWN_SIDE = 640  # px
_EACH = 12  # digits of a picture whose probabilities are printed one by one


def read(
    config: ConfigDict | None,
    workdir: str | Path | None,
    data: str | None,
    ink: str,
    out: str | Path | None = None,
    labels: str | None = None,
) -> None:
    """Reads each picture of `data`, as in `pictures.paths_of`; prints a line for it.

    Writes readings.csv (file, text, the digits' probabilities and boxes; with `labels` also label
    and right) and reading.png, of at most twelve pictures, into `out`, the workdir or FOLDER.
    config: of a run of numbers or of single digits, None for the reader that comes with the
    package. An interrupt keeps what was read. Raises UserError where nothing could be read.
    """
    if not data:
        raise UserError("--mode=read needs --data: a picture, a folder of them, or 'photos/*.jpg'")
    check_labels(data, labels)
    check_choice("--ink", ink, pictures.INKS)
    paths = pictures.paths_of(data, labels)
    status("loading the run")
    reader = Reader(
        open_run(config, workdir) if config and workdir else Predictor(workdir or shipped())
    )
    folder = writable(workdir or "", out or (None if workdir else FOLDER), TABLE, PICTURE)
    rows, scored, unread = list[list[str]](), list[tuple[str, str, str]](), dict[str, str]()
    shown = list[tuple[bool, int, figures.Shown]]()
    try:
        for name, path in pictures.tracked(paths):
            try:
                picture = pictures.opened(path)
                reading = reader.picture(picture, ink)
            except UserError as error:
                unread[name] = str(error)
                console.print(f"{name}  not read: {error}")
                continue
            text = _line(reading)
            console.print(f"{name}  {text}  {_sure(reading)}" if text else f"{name}  no ink found")
            for note in filter(None, (picture.note, _left_out(reading))):
                console.print(f"{name}: {note}")
            label = _label(name, path, labels, reader.characters)
            right = _is(reading, label)
            if label is not None:
                scored.append((name, text, label))
            told = [label or "", "" if label is None else str(int(right))] if labels else []
            rows.append([name, *_row(reading), *told])
            mistake = label is not None and not right  # these come first
            shown.append((not mistake, len(rows), shown_of(name, picture, reading, label)))
            shown = sorted(shown, key=lambda each: each[:2])[:_SHOWN]
    finally:  # also what was read before an interrupt
        if rows:
            columns = [
                "file",
                "text",
                "probabilities",
                "boxes",
                *(["label", "right"] * bool(labels)),
            ]
            artifacts.write_csv(folder / TABLE, columns, rows)
            figures.readings([each for *_, each in shown], folder / PICTURE)
            if labels:
                say_score(scored, TABLE)
            count = f"{len(rows):,} picture{'s' if len(rows) > 1 else ''} read"
            count += f", {len(unread):,} not" if unread else ""
            console.print(Text(f"{count}; {TABLE} and {PICTURE} are in {folder}"))
    if not rows:
        pictures.nothing_read(data, paths, unread)


def _line(reading: Reading) -> str:
    return reading.text.replace("\n", " / ")


def _is(reading: Reading, label: str | None) -> bool:
    """Whether a picture says what its label says, in however many lines."""
    return reading.text.replace("\n", "") == label


def _label(name: str, path: Path, labels: str | None, characters: tuple[str, ...]) -> str | None:
    """The label of a picture; None, and a line that says why, where it has none that fits."""
    if not labels:
        return None
    try:
        label = pictures.label_of(path, labels)
        if not set(label) <= set("".join(characters)):
            raise UserError(f"its label '{label}' is not made of {' '.join(characters)}")
        return label
    except UserError as error:
        console.print(f"{name}: {error}; it doesn't count")
        return None


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f} %"


def _sure(reading: Reading) -> str:
    """How sure the network is of each digit; of many, of the least and of the most certain one."""
    p = [digit.probability for digit in reading.digits]
    return " ".join(map(_percent, p)) if len(p) <= _EACH else f"{_percent(min(p))} or more"


def _left_out(reading: Reading) -> str:
    if not reading.left_out:
        return ""
    count = len(reading.digits)
    return f"{count + reading.left_out:,} pieces of ink, of which the first {count} are read"


def _row(reading: Reading) -> list[str]:
    return [
        _line(reading),
        " ".join(f"{digit.probability:.4f}" for digit in reading.digits),
        "; ".join(" ".join(map(str, digit.box)) for digit in reading.digits),
    ]


def shown_of(
    name: str, picture: pictures.Opened, reading: Reading, label: str | None
) -> figures.Shown:
    """What the page needs of a picture, which is reduced."""
    step = -(-max(picture.pixels.shape) // _SHOWN_SIDE)
    pixels = picture.pixels[::step, ::step].copy()
    height, width = pixels.shape[:2]
    scale = np.asarray([width / picture.size[0], height / picture.size[1]] * 2)
    text, wrong = _line(reading) or "nothing", label is not None and not _is(reading, label)
    return figures.Shown(
        pixels,
        f"{name}: {label} → {text}" if wrong else f"{name}: {text}",
        wrong,
        [
            figures.Part(scale * d.box, d.image, f"{d.character} {_percent(d.probability)}")
            for d in reading.digits
        ],
    )
