"""What a run prints: text for any console, warnings, and what happens at the moment."""

import codecs
import errno
import math
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TextIO, TypeVar, cast

import absl.logging
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

T = TypeVar("T")

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

    written = 0.0  # when something was, by time.perf_counter

    def write(self, text: str) -> int:
        _Output.written = time.perf_counter()
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
    output, colors = cast(TextIO, _Output()), None if NOTEBOOK else "auto"
    options: Any = {"force_jupyter": False, "color_system": colors}  # no HTML for each line
    return Console(
        file=output, highlight=False, soft_wrap=True, markup=False, width=width, **options
    )


NOTEBOOK = Console().is_jupyter
console = printer()

_REFRESH = 0.25  # s between updates of a bar


class Row(NamedTuple):
    """A bar as it is shown; the notes beside it, the most important one first."""

    label: str
    fraction: float
    notes: Sequence[str]


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


class Bar:
    """How far something is, as a context manager: steps of `total`, their rate, the time left.

    The rate is a running mean. brief: no line in a pipe when it begins.
    """

    def __init__(self, label: str, total: int, unit: str = "", brief: bool = False):
        self.label, self.total, self.unit, self._brief = label, total, unit, brief
        self.completed, self.rate = 0, 0.0
        self._updated, self._added, self._next = time.perf_counter(), 0, 0

    def __enter__(self) -> Self:
        status("" if self._brief else self.label)
        _display.text, _display.bar = "", self
        _display.changed()
        return self

    def __exit__(self, *_: object) -> None:
        _display.bar = None
        status("")

    def add(self, steps: int) -> bool:
        """Counts steps that the device works on; is it time to wait for it and to `update`?"""
        self._added += steps
        return self._added > self._next

    def update(self) -> None:
        """Shows the steps that were added as done; without any it restarts the clock."""
        now = time.perf_counter()
        rate = self._added / max(now - self._updated, 1e-9)
        if self._added:
            self.rate = 0.8 * self.rate + 0.2 * rate if self.rate else rate
            self.completed += self._added
        self._updated, self._added, self._next = now, 0, int(rate * _REFRESH)
        _display.moved()

    @property
    def fraction(self) -> float:
        """What is done of it, from 0 to 1."""
        return min(self.completed / max(self.total, 1), 1.0)

    def rows(self) -> list[Row]:
        """What is shown of it."""
        notes = []
        if self.rate:
            notes.append(f"{duration((self.total - self.completed) / self.rate)} left")
            notes += [f"{self.rate:,.0f} {self.unit}"] if self.unit else []
        return [Row(self.label, self.fraction, notes)]


class EpochBar(Bar):
    """The images of one epoch, and below it the epochs of the run.

    seconds: of the epochs before; sooner: the run may end before its last epoch.
    """

    def __init__(
        self, number: int, epochs: int, images: int, seconds: Sequence[float], sooner: bool = False
    ):
        super().__init__(f"epoch {number:>2}/{epochs}", images, "images/s", brief=True)
        self._number, self._epochs, self._seconds, self._sooner = number, epochs, seconds, sooner
        self._began = self._updated

    def rows(self) -> list[Row]:
        done = (self._number - 1 + self.fraction) / self._epochs
        elapsed = time.perf_counter() - self._began
        left = time_left(self._seconds, self._epochs - self._number + 1, elapsed)
        most = "at most " if self._sooner else ""
        notes = [] if left is None else [f"{most}{duration(left)} left"]
        return [*super().rows(), Row("run", done, notes)]


def time_left(seconds: Sequence[float], epochs: int, elapsed: float = 0.0) -> float | None:
    """Seconds that `epochs` more will take, of which the first has run for `elapsed`.

    By the mean of the last five of `seconds`, those of the finished epochs; None without any.
    """
    recent = seconds[-5:]
    if not recent:
        return None
    mean = sum(recent) / len(recent)
    return mean * epochs - min(elapsed, mean)


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '2 h 10 min'."""
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _Display:
    """What happens at the moment. This one shows nothing: a library call in a script or a pipe."""

    def __init__(self) -> None:
        self.text, self.since = "", 0.0
        self.bar: Bar | None = None

    def changed(self, brief: bool = True) -> None:
        """Another phase or bar; a `brief` one needs no line."""

    def moved(self) -> None:
        """The bar was updated."""

    def end(self) -> None: ...

    def line(self) -> str:
        """All of it as one line of text."""
        texts = [self.text] if self.text else []
        for row in self.bar.rows() if self.bar else []:
            texts.append(", ".join([f"{row.label}: {100 * row.fraction:.0f} %", *row.notes]))
        return "; ".join(texts)


class _Lines(_Display):
    """Lines of a command in a pipe: when a phase begins, and of a bar where all was silent."""

    _patience = 3.0  # s; longer after each line, so that a log of hours stays short

    def changed(self, brief: bool = True) -> None:
        if not brief:
            console.print(Text(f"{self.text} ..."))

    def moved(self) -> None:
        silent = time.perf_counter() - _Output.written > self._patience
        if silent and self.bar and 0 < self.bar.fraction < 1:
            console.print(Text(self.line()))
            self._patience = min(2 * self._patience, 60.0)


class _Terminal(_Display):
    """Below all that is printed, and gone at the end."""

    _live: Live | None = None

    def changed(self, brief: bool = True) -> None:
        if not self.text and not self.bar:
            self.end()
        elif self._live:
            self._live.refresh()
        else:
            smooth = console.encoding.startswith("utf")
            self._spinner = Spinner("dots" if smooth else "line")
            self._live = Live(
                get_renderable=self._drawn, console=console, transient=True, refresh_per_second=4
            )
            with _log_on_stderr():
                self._live.start(refresh=True)

    def end(self) -> None:
        live, self._live = self._live, None
        if live:
            with _log_on_stderr():
                live.stop()

    def _drawn(self) -> RenderableType:
        parts: list[RenderableType] = []
        turning = cast(Text, self._spinner.render(console.get_time()))
        if self.text:
            seconds = time.perf_counter() - self.since
            took = f", {duration(seconds)}" if seconds >= 2 else ""
            text = f" {self.text}{took}"
            parts.append(Text.assemble(turning, text, no_wrap=True, overflow="ellipsis"))
            turning = Text(" ")
        if bar := self.bar:
            parts.append(_grid(bar.rows(), turning, console.width))
        return Group(*parts)


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """absl's log goes on to `sys.stderr` where that changes: above what is shown, not into it."""
    handler = absl.logging.get_absl_handler().python_handler
    follows = handler.stream is sys.stderr
    yield
    if follows:
        handler.stream = sys.stderr


def _grid(rows: Sequence[Row], turning: Text, width: int) -> Table:
    """Rows with bars, `width` characters wide at most; where that is narrow, with fewer notes.

    turning: a sign of life before the first row.
    """
    label, percents, most, least = max(len(row.label) for row in rows), 5, 30, 4
    for count in (2, 1, 0):
        notes = [", ".join(row.notes[:count]) for row in rows]
        room = width - label - percents - max(map(len, notes)) - 5
        if room >= least:
            break
    grid = Table.grid(padding=(0, 1))
    for _ in range(5):
        grid.add_column(no_wrap=True)
    for row, note in zip(rows, notes, strict=True):
        sign = turning if row is rows[0] else ""
        bar = ProgressBar(1.0, row.fraction, width=max(min(room, most), least))
        grid.add_row(sign, row.label, bar, f"{100 * row.fraction:3.0f} %", note)
    return grid


class _Notebook(_Display):
    """A line of text that changes: rich's own display would need ipywidgets."""

    def __init__(self) -> None:
        from IPython.display import display

        super().__init__()
        self._shown = 0.0
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def changed(self, brief: bool = True) -> None:
        self._shown = time.perf_counter()
        self._handle.update({"text/plain": self.line()}, raw=True)

    def moved(self) -> None:
        if time.perf_counter() - self._shown >= _REFRESH:
            self.changed()

    def end(self) -> None:
        self._handle.update({"text/plain": ""}, raw=True)


_display = _Display()


@contextmanager
def display(lines: bool = False) -> Iterator[None]:
    """Within, `status` and bars are shown on a terminal or in a notebook; with `lines` everywhere.

    Within another display it changes nothing.
    """
    global _display
    if type(_display) is not _Display or console.quiet:
        yield
        return
    if NOTEBOOK:
        _display = _Notebook()
    elif console.is_interactive and console.is_terminal:
        _display = _Terminal()
    elif lines:
        _display = _Lines()
    try:
        yield
    finally:
        _display.end()
        _display = _Display()


def end_display() -> None:
    """Clears what is shown, before a process is ended at once: the cursor was hidden.

    Within a second: a signal may have interrupted what holds the terminal's lock.
    """
    ending = threading.Thread(target=_display.end, daemon=True)
    ending.start()
    ending.join(1)


def status(text: str, brief: bool = False) -> None:
    """What begins now and may take a while, until the next status; '' for nothing.

    brief: without a line in a pipe, as of what each epoch does.
    """
    _display.text, _display.since = text, time.perf_counter()
    _display.changed(brief or not text)


def track(items: Collection[T], label: str) -> Iterator[T]:
    """The items, one by one, with a bar."""
    with Bar(label, len(items)) as bar:
        for item in items:
            yield item
            if bar.add(1):
                bar.update()


def percent(
    fraction: float | None, spread: float | None = None, unit: str = " %", seeds: int = 3
) -> str:
    """0.98123 -> '98.12 %', with a standard deviation '98.12 ± 0.05 %'; None -> '–'.

    Of two seeds a deviation says little, so both stand there: '98.07 and 98.17 %'.
    """
    if fraction is None:
        return "–"
    if spread is not None and seeds < 3:
        half = spread / math.sqrt(2)  # two values are a standard deviation (n - 1) / sqrt(2) away
        return f"{100 * (fraction - half):.2f} and {100 * (fraction + half):.2f}{unit}"
    text = f"{100 * fraction:.2f}"
    return text + ("" if spread is None else f" ± {100 * spread:.2f}") + unit
