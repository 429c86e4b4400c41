"""What is shown while people wait: bars, the time left, in pipes, on terminals, in notebooks."""

import os
import re
import struct
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from digits_jax import console, errors

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clock(monkeypatch):
    """-> a list with the time, which the test moves."""
    now = [100.0]
    monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
    return now


def test_a_steady_rate_and_four_looks_a_second(clock):
    bar = console.Bar("epoch 1/1", 10_000)

    def update(images, seconds):
        clock[0] += seconds
        bar.add(images)
        bar.update()

    update(0, 5.0)  # compiling: starts the clock, counts for nothing
    assert bar.rate == 0
    assert bar.add(1)
    update(999, 1.0)
    assert bar.rate == pytest.approx(1000)
    assert [bar.add(images) for images in (250, 1)] == [False, True]
    update(1749, 1.0)
    assert not bar.add(500)
    assert bar.add(1)
    bar._added = 0
    assert bar.rate == pytest.approx(0.8 * 1000 + 0.2 * 2000)
    assert bar.completed == 3000


def test_the_time_left_of_a_run_by_hand():
    assert console.time_left([], 3) is None
    assert console.time_left([10.0, 20.0], 3) == 45
    assert console.time_left([10.0, 20.0], 3, elapsed=5.0) == 40
    assert console.time_left([10.0, 20.0], 3, elapsed=99.0) == 30  # late, so two more
    assert console.time_left([100.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2) == 2  # members have stopped
    assert console.time_left([10.0], 0) == 0


def test_durations():
    seconds = {0.4: "0 s", 99.4: "99 s", 99.6: "2 min", 720: "12 min", 7800: "2 h 10 min"}
    assert {number: console.duration(number) for number in seconds} == seconds


def test_two_seeds_are_given_themselves():
    """Of 0.7 and 0.8 the deviation (n - 1) is 0.0707."""
    assert console.percent(0.75, 0.1 / 2**0.5, seeds=2) == "70.00 and 80.00 %"
    assert console.percent(0.75, 0.1 / 2**0.5, seeds=3) == "75.00 ± 7.07 %"
    assert console.percent(0.75, None, seeds=1) == "75.00 %"
    assert console.percent(None, None, seeds=2) == "–"


def a_run(clock):
    """What a short run shows: two epochs of four seconds, 100 images each."""
    console.status("compiling")
    clock[0] += 5
    seconds = []
    for number in (1, 2):
        with console.EpochBar(number, 2, 100, seconds, sooner=True) as bar:
            bar.update()
            for _ in range(4):
                clock[0] += 1
                bar.add(25)
                bar.update()
            console.status("evaluating", brief=True)
        seconds.append(4.0)
        console.console.print(f"epoch {number} is done")
    console.status("drawing the pictures")
    for _ in console.track(range(3), "pairs"):
        clock[0] += 4
    clock[0] += 10


def test_in_a_pipe_a_line_when_a_phase_begins_and_where_all_is_silent(clock, capsys):
    with console.display(lines=True):
        a_run(clock)
    assert capsys.readouterr().out.splitlines() == [
        "compiling ...",
        "epoch  1/2: 25 %, 3 s left, 25 images/s; run: 12 %",
        "epoch 1 is done",
        "epoch 2 is done",
        "drawing the pictures ...",
        "pairs ...",
        "pairs: 67 %, 4 s left",  # not after 4 s: each such line makes the next one later
    ]


def test_a_library_call_in_a_script_shows_nothing(clock, capsys):
    a_run(clock)
    with console.display():
        a_run(clock)
    assert capsys.readouterr().out == 2 * "epoch 1 is done\nepoch 2 is done\n"


def test_another_process_of_a_run_stays_quiet(clock, capsys, monkeypatch):
    monkeypatch.setattr(console.console, "quiet", True)
    with console.display(lines=True):
        a_run(clock)
    assert capsys.readouterr().out == ""


def test_in_a_notebook_one_line_of_text_changes(clock, monkeypatch):
    """Without ipywidgets, and without rich's warning that they are missing."""
    shown = []

    class Handle:
        def update(self, content, raw):
            assert raw
            shown.append(content["text/plain"])

    def display(*content, raw=False, display_id=None):
        if display_id:
            assert (content, raw) == (({"text/plain": ""},), True)
        return Handle()

    fake = types.ModuleType("IPython.display")
    fake.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(console, "NOTEBOOK", True)
    with warnings.catch_warnings(), console.display():
        warnings.simplefilter("error")
        a_run(clock)
    assert shown[0] == "compiling"
    assert "epoch  1/2: 50 %, 2 s left, 25 images/s; run: 25 %" in shown
    assert "evaluating; epoch  2/2: 100 %, 0 s left, 25 images/s; run: 100 %, at most 0 s left" in (
        shown
    )
    assert "epoch  2/2: 25 %, 3 s left, 25 images/s; run: 62 %, at most 3 s left" in shown
    assert shown[-1] == ""


def screen(output):
    """The lines that a terminal shows after `output`; -> (the longest that it ever was, lines)."""
    rows, y, x, longest = [""], 0, 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", output):
        if part == "\x1b[2K":
            rows[y] = ""
        elif part == "\x1b[1A":
            y -= 1
        elif part == "\r":
            x = 0
        elif part == "\n":
            y, rows = y + 1, rows + [""] * (y + 1 == len(rows))
        elif part[0] != "\x1b":
            rows[y] = f"{rows[y][:x]:{x}}{part}{rows[y][x + 1 :]}"
            x, longest = x + 1, max(longest, x + 1)
        else:
            assert re.fullmatch(r"\x1b\[(\?25[lh]|[\d;]*m)", part), part
    return longest, [row.rstrip() for row in rows]


def on_a_terminal(columns, arguments, code=0):
    """-> what a program writes to a terminal of so many columns; code: with which it exits."""
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm", "PYTHONUTF8": "1"}
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs) as p:
        os.close(theirs)
        output = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the end, on Linux
                break
            if not part:
                break
            output += part
    os.close(ours)
    assert p.returncode == code, output.decode()
    return output.decode()


@pytest.mark.parametrize("columns", [80, 40])
def test_on_a_terminal_nothing_is_wider_and_nothing_is_left_over(columns):
    program = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import logging; from absl import app, logging as log\n"
        "log.get_absl_handler().setFormatter(logging.Formatter('%(message)s'))\n"
        "from digits_jax import console; from test_console import a_run\n"
        "now = [100.0]; console.time.perf_counter = lambda: now[0]\n"
        "def main(_):\n"
        "    with console.display(lines=True):\n"
        "        console.status('a word ' * 20)\n"
        "        logging.warning('a warning')\n"
        "        a_run(now)\n"
        "app.run(main)\n"
    )
    output = on_a_terminal(columns, [sys.executable, "-c", program])
    longest, lines = screen(output)
    assert longest <= columns
    assert list(filter(None, lines)) == ["a warning", "epoch 1 is done", "epoch 2 is done"]
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is back
    for shown in ("compiling", "evaluating", "run", "at most", "drawing the pictures", "pairs"):
        assert shown in output
    assert ("25 images/s" in output) == (columns == 80)


def test_a_signal_leaves_the_terminal_as_it_was():
    program = (
        "import os, signal, time; from digits_jax import cli, console\n"
        "cli.exit_at_once()\n"
        "with console.display():\n"
        "    console.status('starting JAX')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    output = on_a_terminal(80, [sys.executable, "-c", program], errors.SAVED)
    assert "starting JAX" in output
    assert not any(screen(output)[1])
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 40])
def test_a_run_on_a_terminal(columns, cache, tmp_path):
    fields = {"data.source": "drawn", "data.cache_dir": cache, "epochs": 2, "data.drawn_train": 200}
    given = [f"--config.{field}={value}" for field, value in fields.items()]
    command = [sys.executable, "launch.py", "--config=lenet5", f"--workdir={tmp_path}", *given]
    output = on_a_terminal(columns, [*command, "--config.data.drawn_test=50"])
    _, lines = screen(output)
    header = next(line for line in lines if "as trained validation" in line)
    assert ("images/s" in header) == (columns == 80)
    row = lines[lines.index(header) + 1]
    assert row.split()[0] == "1/2"
    assert max(len(header), len(row)) <= columns
    assert "compiling" in output
    assert not any(word in line for line in lines for word in ("compiling", "starting", "━"))


def test_the_first_line_comes_before_jax():
    program = (
        "import os, sys; from digits_jax import cli, console\n"
        "def status(text, **_):\n"
        "    print(text, 'jax' in sys.modules, flush=True); os._exit(0)\n"
        "console.status = status\n"
        "sys.argv = ['launch.py', *sys.argv[1:]]\n"
        "cli.main()\n"
    )

    def said(*arguments):
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout

    assert said("--config=lenet5") == "starting JAX False\n"
    assert said("--config=lenet5", "--mode=demonstrate") == ""
    assert "starting" not in said("--help")


def test_a_warning_is_whole_in_a_narrow_window(monkeypatch, capsys):
    monkeypatch.setattr(console.console, "width", 40)
    console.warn(console.DRAWN_NOTICE)
    shown = capsys.readouterr().out
    assert "--config.resume=False" in shown
    assert "MNIST's." in shown


def test_own_warnings_are_shown_and_those_of_libraries_are_not(tmp_path):
    program = (
        "import logging, sys; from pathlib import Path; from absl import app\n"
        "from digits_jax.devices import backend\n"
        "def main(_):\n"
        f"    with backend.command(Path({str(tmp_path)!r})):\n"
        "        logging.getLogger('digits_jax.training.checkpoint').warning('ours')\n"
        "        logging.getLogger('orbax').warning('theirs')\n"
        "        logging.warning('anybody')\n"
        "app.run(main)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr
    assert "ours" in said
    assert "theirs" not in said
    assert "anybody" not in said
