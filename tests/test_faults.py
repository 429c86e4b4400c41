"""Runs that are stopped, killed, starved or led astray: nothing is lost, nothing is wrong."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import built, config_of, shrink, slow_except
from jax.experimental import multihost_utils

from digits_jax.core.population import members_of
from digits_jax.core.step import best_weights
from digits_jax.devices import signals
from digits_jax.errors import SAVED, Stopped, UserError
from digits_jax.training import epoch as epochs
from digits_jax.training import run as building
from digits_jax.training import train as loop
from digits_jax.training.checkpoint import Checkpoints
from digits_jax.training.predictor import Predictor
from digits_jax.training.train import train

pytestmark = pytest.mark.usefixtures("unpictured")

ROOT = Path(__file__).parent.parent


def small(cache, **fields):
    """Two members of a two-head MLP, three steps an epoch."""
    config = shrink(config_of("two_head:mlp"), cache)
    config.model.hidden = (8,)
    config.optimizer.ema = 0.9
    config.update(**fields)
    config.population.update(size=2, slice=1)
    return config


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def same(one, two):
    assert rows(one) == rows(two)
    weights = (jax.tree.leaves(Predictor(folder).weights) for folder in (one, two))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


class Asked:
    """Interrupts that come after so many steps."""

    def __init__(self, steps):
        self._left, self.begun = steps, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def asked(self):
        self._left -= 1
        return self._left < 0


@pytest.fixture(scope="module", autouse=True)
def step_by_step():
    """A GPU would take an epoch at once, and be stopped only after it."""
    build = loop.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build", lambda *how: dataclasses.replace(build(*how), chunk=1))
        yield


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train(small(cache), workdir)
    return workdir


@pytest.mark.parametrize(
    "steps", slow_except([[2], [7, 0, 0, 1]], [[0], [2], [4], [7, 0, 0, 1], [11]])
)
def test_stopped_at_any_step_and_started_again(cache, whole, tmp_path, steps):
    """2 epochs of 2 members of 3 steps: in either member's, at its end, once and more often."""
    for left in steps:
        with pytest.raises(Stopped, match="the same command goes on"):
            train(small(cache), tmp_path, lambda left=left: Asked(left))
        assert (tmp_path / "interrupted").exists()
        assert not (tmp_path / "summary.json").exists()
    train(small(cache), tmp_path)
    same(tmp_path, whole)
    assert not (tmp_path / "interrupted").exists()


def test_stopped_when_all_epochs_are_done(cache, whole, tmp_path):
    with pytest.raises(Stopped, match="after the last epoch; the same command goes on"):
        train(small(cache), tmp_path, lambda: Asked(12))
    assert not (tmp_path / "interrupted").exists()
    train(small(cache), tmp_path)
    same(tmp_path, whole)


def test_a_run_that_began_anew_does_not_begin_anew_again(cache, tmp_path):
    with pytest.raises(Stopped, match=r"the command without --config\.resume=False goes on"):
        train(small(cache, resume=False), tmp_path, lambda: Asked(4))


def test_a_damaged_part_of_an_epoch_is_done_again(cache, whole, tmp_path, caplog):
    with pytest.raises(Stopped):
        train(small(cache), tmp_path, lambda: Asked(8))
    for path in (tmp_path / "interrupted").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    train(small(cache), tmp_path)
    same(tmp_path, whole)
    assert "no checkpoint can be read" in caplog.text


COMMAND = [
    *(sys.executable, "launch.py", "--config=configs/mnist100.py:mlp", "--config.epochs=2"),
    *("--config.data.source=drawn", "--config.data.drawn_train=600", "--config.data.drawn_test=50"),
    *("--config.data.train=9600", "--config.data.test=40", "--config.batch_size=8"),
    "--config.model.hidden=(64,)",
]


@pytest.mark.slow
def test_sigterm_saves_and_exits(cache, tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [*COMMAND, f"--config.data.cache_dir={cache}"]

    def start(workdir):
        arguments = [*command, f"--workdir={workdir}"]
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    whole, stopped = start(tmp_path / "whole"), tmp_path / "stopped"
    process = start(stopped)
    deadline = time.monotonic() + 120
    while not (stopped / "checkpoints" / "1").exists():
        assert process.poll() is None, "it ended before it was stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == SAVED
    assert (stopped / "interrupted").exists()
    assert start(stopped).wait() == 0
    assert whole.wait() == 0
    same(stopped, tmp_path / "whole")


@pytest.mark.parametrize(("risk", "signals", "code"), [(False, 1, SAVED), (True, 2, 143)])
def test_with_nothing_to_lose_or_told_twice_it_exits_at_once(risk, signals, code):
    """Though the main thread is busy in C, as while it compiles."""
    program = (
        "import ctypes; from digits_jax.devices.signals import Interrupts\n"
        "with Interrupts() as interrupts:\n"
        f"    interrupts.begun = {risk}\n"
        "    print('ready', flush=True)\n"
        "    while True: ctypes.CDLL(None).sleep(60)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        for _ in range(signals):
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        process.communicate(timeout=30)
        assert process.returncode == code


KNOWN = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
LISTENS = (
    "import ctypes, signal, sys; from digits_jax.devices import signals\n"
    "{before}\n"
    "with signals.Interrupts() as interrupts:\n"
    "    interrupts.begun = True\n"
    "    print('ready', flush=True)\n"
    "    while not interrupts.asked(): ctypes.CDLL(None).usleep(10000)\n"
    "sys.exit(75)\n"
)


@pytest.mark.parametrize("name", KNOWN)
def test_each_signal_that_ends_a_job_asks_it_to_save(name):
    """Ctrl-C, a cluster's end, its warning before that (Slurm, submitit), and a lost terminal."""
    # In a shell's background, where tests may run, Ctrl-C is ignored.
    before = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", LISTENS.format(before=before)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        assert "saving what is done" in process.communicate(timeout=30)[0]
        assert process.returncode == SAVED


def test_a_lost_terminal_takes_no_run_with_it():
    """Its process hears SIGHUP, and all that it prints from then on fails."""
    program = LISTENS.format(before="") + "print('not reached')"
    program = program.replace("sys.exit(75)", "signals.console.print('after'); sys.exit(75)")
    terminal, other = os.openpty()
    stops = "def stop(*_, **__): raise Stopped('saved')\ncli.app.run = stop; cli.main()"
    program = program.replace(
        "sys.exit(75)", f"\nfrom launch import cli\nfrom digits_jax.errors import Stopped\n{stops}"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=other, stderr=other) as process:
        os.close(other)
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(terminal, 100)
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=30)
        assert process.returncode == SAVED


def test_a_run_under_nohup_outlives_its_terminal():
    """What the process was started to ignore stays ignored."""
    ignoring = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    command = [sys.executable, "-c", LISTENS.format(before=ignoring)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == SAVED


def test_systems_that_lack_some_signals(monkeypatch):
    """Windows has neither SIGHUP nor SIGUSR1."""
    for name in ("SIGHUP", "SIGUSR1"):
        monkeypatch.delattr(signal, name, raising=False)
    assert signals.stopping() == (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(one) for one in signals.stopping()]
    with signals.Interrupts() as interrupts:
        assert not interrupts.asked()
        interrupts.begun = True
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not interrupts.asked():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert before == [signal.getsignal(one) for one in signals.stopping()]


def test_before_it_listens_such_a_signal_ends_it_with_the_code_of_what_can_go_on():
    program = (
        "import time; from launch import cli\n"
        "cli.exit_at_once(); print('ready', flush=True)\n"
        "while True: time.sleep(0.05)\n"  # a signal just before a sleep does not end it
    )
    for name in KNOWN:
        command = [sys.executable, "-c", program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(getattr(signal, name))
            process.communicate(timeout=30)
            assert process.returncode == (-signal.SIGINT if name == "SIGINT" else SAVED)


def test_orbax_reports_no_epoch_to_the_preemption_service_as_a_step(tmp_path, monkeypatch):
    """Several processes agree there on the step at which they stop."""
    reported = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reported.append)
    state = {"x": np.arange(3, dtype=np.float32)}
    with ocp.CheckpointManager(tmp_path / "orbax") as manager:
        manager.save(1, args=ocp.args.StandardSave(state))
    assert set(reported) == {1}
    reported.clear()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"seconds": 1.0})
        checkpoints.restore(state)
    assert reported == []


def test_a_part_of_an_epoch_stays_until_what_replaces_it_is_on_disk(
    cache, whole, tmp_path, monkeypatch
):
    """Killed while the part after it, or the epoch's own checkpoint, is written."""
    with pytest.raises(Stopped):
        train(small(cache), tmp_path, lambda: Asked(8))
    save = Checkpoints.save

    def killed(checkpoints, *arguments):
        for what in checkpoints._folder.parent.glob("*/*"):
            assert what.parent.name != "interrupted" or any(what.iterdir())
        raise KeyboardInterrupt

    for stop in (1, None):  # in mid-epoch, and at its end
        listen = (lambda: Asked(1)) if stop else signals.NoInterrupts
        monkeypatch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(small(cache), tmp_path, listen)
        with Checkpoints(tmp_path, "interrupted") as parts:
            assert parts.epochs() == [1]
    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(Stopped):
        train(small(cache), tmp_path, lambda: Asked(1))
    with Checkpoints(tmp_path, "interrupted") as parts:  # the one before it, too, should it be torn
        assert parts.epochs() == [2, 1]

    waited = []
    wait = Checkpoints.wait
    monkeypatch.setattr(
        Checkpoints,
        "wait",
        lambda c: waited.append((tmp_path / "interrupted").exists()) or wait(c),
    )
    train(small(cache), tmp_path)
    assert waited == [True]
    assert not (tmp_path / "interrupted").exists()
    same(tmp_path, whole)


@pytest.mark.slow
def test_more_epochs_can_be_thought_better_of(cache, tmp_path):
    """Two epochs, then five, stopped in the third: two again are the run that it was."""

    def steady(epochs):
        config = small(cache, epochs=epochs)
        config.optimizer.schedule = "constant"
        return config

    whole, run = tmp_path / "whole", tmp_path / "run"
    for workdir in (whole, run):
        train(steady(2), workdir)
    with pytest.raises(Stopped):
        train(steady(5), run, lambda: Asked(2))
    train(steady(2), run)
    same(run, whole)
    with pytest.raises(Stopped):
        train(steady(5), run, lambda: Asked(8))  # in the fourth
    with pytest.raises(UserError, match="epochs: 5 there, 2 now"):
        train(steady(2), run)


@pytest.mark.slow
def test_a_teacher_that_was_trained_anew_does_not_mix_in(cache, tmp_path):
    """Nor do other weights to prune: what a run learns from is part of what it is."""

    def student():
        config = small(cache)
        config.distill.teacher = str(tmp_path / "teacher")
        return config

    def pruned():
        config = small(cache)
        config.population.size = 1
        config.prune.update(run=str(tmp_path / "teacher"), fractions=(0.0, 0.5))
        return config

    train(small(cache), tmp_path / "teacher")
    for name, config in (("student", student()), ("pruned", pruned())):
        with pytest.raises(Stopped):
            train(config, tmp_path / name, lambda: Asked(8))
    train(small(cache, seed=7, resume=False), tmp_path / "teacher")
    for name, config in (("student", student()), ("pruned", pruned())):
        with pytest.raises(UserError, match=r"are not those that the run in .* began with"):
            train(config, tmp_path / name)
    train(small(cache, resume=False), tmp_path / "teacher")  # the first, bit for bit
    train(student(), tmp_path / "student")
    train(student(), tmp_path / "whole")
    same(tmp_path / "student", tmp_path / "whole")


def test_a_run_cannot_be_its_own_teacher(cache, tmp_path):
    """Starting over would delete what it learns from."""
    train(small(cache), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    config = small(cache, resume=False)
    config.distill.teacher = f"{tmp_path}/../{tmp_path.name}"
    with pytest.raises(UserError, match="is the --workdir, and a run cannot learn from itself"):
        train(config, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_two_processes_in_one_workdir(cache, whole, tmp_path):
    """The second is refused; a lock that nobody holds any more is none."""
    program = (
        "import filelock, os, sys\n"
        f"lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire()\n"
        "print('ready', flush=True); sys.stdin.readline(); os._exit(1)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as other:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(UserError, match="another process is training in"):
            train(small(cache), tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
        other.communicate("\n")
    train(small(cache), tmp_path)
    same(tmp_path, whole)
    with filelock.FileLock(tmp_path / ".lock", timeout=0):  # nor is it held afterwards
        pass


def test_a_clock_that_jumps(cache, whole, tmp_path, monkeypatch):
    """Three years ahead in each epoch, while the checkpoint before is still being written."""
    clock, go, jumped = time.time, loop.train_epoch, []

    def jump(*arguments):
        jumped.append(1e8)
        return go(*arguments)

    monkeypatch.setattr(loop, "train_epoch", jump)
    monkeypatch.setattr(time, "time", lambda: clock() + sum(jumped))
    train(small(cache), tmp_path)
    assert len(jumped) == 2
    same(tmp_path, whole)


@pytest.mark.parametrize("stop", slow_except([None, 5], [None, 5, 7]))
def test_only_the_member_that_diverges_stops(cache, whole, tmp_path, monkeypatch, capsys, stop):
    """Member 1 at a rate that no float survives: member 0 goes on as if it were alone."""

    def wild(config, ids):
        members = members_of(config, ids)
        rate = members.hyper.learning_rate.copy()
        rate[1:] = 1e38
        return members._replace(hyper=members.hyper.replace(learning_rate=rate))

    monkeypatch.setattr(building.population, "members_of", wild)
    config = small(cache)
    run = built(config)
    own, first = run.begin_epoch(1, 1), None
    for step in range(3):
        own = run.stepper(own, 1)(own)
        if first is None and not np.isfinite(own.totals.loss[0]):
            first = step + 1
    assert first in (2, 3)

    if stop:  # in member 1's lost epoch, or after it: what is known of it outlives the stop
        with pytest.raises(Stopped):
            train(small(cache), tmp_path, lambda: Asked(stop))
    train(small(cache), tmp_path)
    assert rows(tmp_path) == [row for row in rows(whole) if row["member"] == 0]
    members = json.loads((tmp_path / "summary.json").read_text())["members"]
    assert "diverged" not in members[0]
    assert members[1]["diverged"]["step"] == first
    assert members[1]["diverged"]["epoch"] == 1
    assert members[1]["best_epoch"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(Predictor(tmp_path).weights))
    if stop is None:
        assert f"member 1 stopped being a number in step {first}" in capsys.readouterr().out


def test_without_validation_the_last_good_weights_stay(cache, tmp_path, monkeypatch):
    """A loss that explodes in epoch 2: what is judged are the weights after epoch 1."""
    config = small(cache, epochs=1)
    config.data.validation = 0.0
    config.population.size = 1
    train(config, tmp_path / "one")

    config = small(cache)
    config.data.validation = 0.0
    run = built(config)
    clock = loop.Clock()
    loop.train_epoch(run, 1, clock)
    spoilt = jax.tree.map(lambda x: x * np.float32(np.nan), run.states[0].params)
    run.states[0] = run.states[0].replace(params=spoilt)
    assert [row["member"] for row in loop.train_epoch(run, 2, clock)] == [1]
    assert run.diverged[0]["step"] == run.steps_per_epoch + 1
    kept = best_weights(run.states[0]).params
    sound = jax.tree.map(
        np.ones_like, run.begin_epoch(0, 1).totals
    )  # the step that spoils has a loss
    stopped = np.zeros(1, bool)
    assert epochs._stop_diverged(run, 0, 2, sound, stopped).all()
    assert not epochs._stop_diverged(run, 1, 2, sound, stopped).any()
    for a, b in zip(
        jax.tree.leaves(kept), jax.tree.leaves(Predictor(tmp_path / "one").weights[0]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_checkpoint_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
    state = {"x": np.arange(3, dtype=np.float32)}

    def fails(*_, **__):
        raise full

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints._manager.wait_until_finished()
        monkeypatch.setattr(checkpoints._manager, "save", fails)
        with pytest.raises(UserError, match=r"No space left on device.*from the one before"):
            checkpoints.save(2, state, {})
    with pytest.raises(UserError, match="No space left"), Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fails)
    checkpoints = Checkpoints(tmp_path).__enter__()
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fails)
    checkpoints.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with Checkpoints(tmp_path) as checkpoints:
        epoch, saved, _ = checkpoints.restore(state)
    assert epoch == 1
    np.testing.assert_array_equal(saved["x"], state["x"])
    assert hooks == (sys.excepthook, sys.unraisablehook, threading.excepthook)
