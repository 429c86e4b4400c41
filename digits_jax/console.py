"""What a person sees while a run goes on."""

import time

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)

_REFRESH = 0.25  # s

DRAWN_NOTICE = (
    "[bold]MNIST could not be had, so this run trains and tests on DRAWN digits.[/bold]\n"
    "They are drawn by a program, no handwriting: do not compare the figures with MNIST's.\n"
    "For MNIST: connect to the internet once, or put its four files into a folder and pass "
    "--config.data.raw_dir=FOLDER, then start over with --config.resume=False"
)


def warn(text: str) -> None:
    """A notice that cannot be missed."""
    panel = Panel(text, border_style="yellow", title="warning", expand=False)
    console.print(panel, soft_wrap=False)  # wrapped, where the console would cut it off


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


def percent(fraction: float) -> str:
    """0.98123 -> '98.12 %'."""
    return f"{100 * fraction:.2f} %"
