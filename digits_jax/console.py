"""What a person sees while a run goes on."""

import codecs
import errno
import sys
import time
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_LOOKALIKES = {"±": "+-", "→": "->", "–": "-", "−": "-", "×": "x", "│": "|", "…": "..."}


def _lookalike(error: UnicodeError) -> tuple[str, int]:
    """For `str.encode`: what looks like a character that the encoding has not, or '?'."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_LOOKALIKES.get(character, "?") for character in lacking), error.end


codecs.register_error("digits_jax.lookalike", _lookalike)


class _Output:
    """Standard output, whichever it is at the time; no character, no lost terminal ends a run."""

    @property
    def _stream(self) -> Any:
        return getattr(sys.stdout, "rich_proxied_file", sys.stdout)  # below a bar's own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self._stream is None:  # a program without a console
            return len(text)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "digits_jax.lookalike").decode(encoding)
        try:
            self._stream.write(shown)
        except OSError as error:
            _unless_hung_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError as error:
            _unless_hung_up(error)


def _unless_hung_up(error: OSError) -> None:
    if error.errno != errno.EIO:  # what a terminal that was closed answers
        raise error


def printer(width: int | None = None) -> Console:
    """A console on standard output that prints text as it is: a path's [brackets] are no markup."""
    output: Any = _Output()
    return Console(file=output, highlight=False, soft_wrap=True, markup=False, width=width)


console = printer()

_REFRESH = 0.25  # s

DRAWN_NOTICE = (
    "MNIST could not be had, so this run trains and tests on DRAWN digits.\n"
    "They are drawn by a program, no handwriting: do not compare the figures with MNIST's.\n"
    "For MNIST: connect to the internet once, or put its four files into a folder and pass "
    "--config.data.raw_dir=FOLDER. That is another run, in another --workdir or with "
    "--config.resume=False.\n"
    "Where nobody watches, --config.data.source=mnist makes a run end here instead."
)


def warn(text: str) -> None:
    """A notice that cannot be missed; its first line is bold."""
    first, *others = text.split("\n", 1)
    styled = Text("\n").join([Text(first, "bold" if others else ""), *map(Text, others)])
    panel = Panel(styled, border_style="yellow", title="warning", expand=False)
    console.print(panel, soft_wrap=False)  # wrapped, where the console would cut it off


def warn_drawn(reason: str) -> None:
    """That a run trains on drawn digits, because of `reason`, though nobody asked for them."""
    cause = reason.partition(". ")[0]  # the ways out are in the notice
    warn("\n".join(filter(None, (DRAWN_NOTICE, cause))))


class EpochBar:
    """A bar of images with their rate, as a context manager; it vanishes at the end.

    Only on a terminal: a log gets the epoch lines alone.
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
        self._shown = time.perf_counter()

    def __enter__(self) -> "EpochBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, images: int) -> int:
        """`images` more are done since the last call; 0 starts the clock anew.

        The rate is a running mean, so that it is steady. Returns how many images should pass
        before the next call, for a few looks at the device a second and no more.
        """
        now = time.perf_counter()
        rate, old = images / (now - self._shown), self._progress.tasks[0].fields["rate"]
        self._shown = now
        if images:
            steady = 0.8 * old + 0.2 * rate if old else rate
            self._progress.update(self._task, advance=images, rate=steady)
        return int(rate * _REFRESH)


def percent(fraction: float | None, spread: float | None = None, unit: str = " %") -> str:
    """0.98123 -> '98.12 %', with a standard deviation '98.12 ± 0.05 %'; None -> '–'."""
    if fraction is None:
        return "–"
    text = f"{100 * fraction:.2f}"
    return text + ("" if spread is None else f" ± {100 * spread:.2f}") + unit
