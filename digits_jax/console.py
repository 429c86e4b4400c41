"""What a run prints: text for any console, warnings and a progress bar."""

import codecs
import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_LOOKALIKES = {"±": "+-", "→": "->", "–": "-", "−": "-", "×": "x", "│": "|", "…": "..."}


def _lookalike(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `str.encode`: a similar character of the encoding, or '?'."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_LOOKALIKES.get(character, "?") for character in lacking), error.end


codecs.register_error("digits_jax.lookalike", _lookalike)


class _Output:
    """The current standard output, without errors for its encoding or for a lost terminal."""

    @property
    def _stream(self) -> TextIO | None:  # None in a program without a console
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # below a progress bar's own

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream is not None:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            with _hang_up_ignored():
                self._stream.write(text.encode(encoding, "digits_jax.lookalike").decode(encoding))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with _hang_up_ignored():
                self._stream.flush()


@contextmanager
def _hang_up_ignored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:  # of a terminal that was closed
            raise


def printer(width: int | None = None) -> Console:
    """A console on standard output that prints text as it is: a path's [brackets] are no markup."""
    output = cast(TextIO, _Output())
    return Console(file=output, highlight=False, soft_wrap=True, markup=False, width=width)


console = printer()

_REFRESH = 0.25  # s between updates of a progress bar

DRAWN_NOTICE = (
    "MNIST could not be had, so this run trains and tests on DRAWN digits.\n"
    "They are drawn by a program, no handwriting: do not compare the figures with MNIST's.\n"
    "For MNIST: connect to the internet once, or put its four files into a folder and pass "
    "--config.data.raw_dir=FOLDER. That is another run, in another --workdir or with "
    "--config.resume=False.\n"
    "Where nobody watches, --config.data.source=mnist makes a run end here instead."
)


def warn(text: str) -> None:
    """Prints a framed notice; the first of several lines is bold."""
    first, *others = text.split("\n", 1)
    styled = Text("\n").join([Text(first, "bold" if others else ""), *map(Text, others)])
    panel = Panel(styled, border_style="yellow", title="warning", expand=False)
    console.print(panel, soft_wrap=False)  # wrapped, where the console would cut it off


def warn_drawn(reason: str) -> None:
    """Warns that a run trains on drawn digits for want of MNIST; `reason` begins with the cause."""
    cause = reason.partition(". ")[0]  # the notice has the ways out
    warn("\n".join(filter(None, (DRAWN_NOTICE, cause))))


class EpochBar:
    """A progress bar of images with their rate, as a context manager; shown on a terminal only.

    The rate is a running mean.
    """

    def __init__(self, label: str, images: int):
        self._progress = Progress(
            TextColumn(label),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TextColumn("{task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(label, total=images, rate=0.0)
        self._updated, self._added, self._next = time.perf_counter(), 0, 0

    def __enter__(self) -> "EpochBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, images: int) -> bool:
        """Counts images that the device works on; is it time to wait for it and to `update`?"""
        self._added += images
        return self._added > self._next

    def update(self) -> None:
        """Shows the images that were added as done; without any it restarts the clock."""
        now = time.perf_counter()
        rate, old = self._added / (now - self._updated), self._progress.tasks[0].fields["rate"]
        if self._added:
            mean = 0.8 * old + 0.2 * rate if old else rate
            self._progress.update(self._task, advance=self._added, rate=mean)
        self._updated, self._added, self._next = now, 0, int(rate * _REFRESH)


def percent(fraction: float | None, spread: float | None = None, unit: str = " %") -> str:
    """0.98123 -> '98.12 %', with a standard deviation '98.12 ± 0.05 %'; None -> '–'."""
    if fraction is None:
        return "–"
    text = f"{100 * fraction:.2f}"
    return text + ("" if spread is None else f" ± {100 * spread:.2f}") + unit
