"""The command line: every mistake is one clear line and exit code 1."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import digits_jax
from digits_jax import settings
from launch import cli

ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/mnist100.py"
COMPARE = ("--mode=compare", "--variants=cnn,tower")
RUNS = ("--mode=compare", "--runs={tmp}/a,{tmp}/b")
LENET = "--config=configs/lenet5.py"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([CONFIG, "--config.optimizer.learning_rat=1"], "did you mean 'learning_rate'"),
        ([CONFIG, "--config.epoch=1"], "did you mean 'epochs'"),
        ([CONFIG, "--config.seed.x=1"], "there is no field 'x'"),
        ([f"{CONFIG}:towr"], "did you mean 'tower'"),
        ([CONFIG, "--config.epochs=many"], "epochs"),
        ([CONFIG, "--config.data.fresh_pairs=maybe"], "fresh_pairs"),
        (["--config=configs/mnist1000.py"], "mnist1000"),
        ([CONFIG, "--config", "--mode=train"], "--mode=train"),
        ([CONFIG, "--mode=trian"], "did you mean 'train'"),
        ([CONFIG, "--workdr=x"], "workdr"),
        ([CONFIG, "--data=mine.png"], "--data is for --mode=eval, read"),
        (
            [CONFIG, "--out=x"],
            "for --mode=eval, read, best-test-epoch, more-pairs, robustness, explain, export, demo",
        ),
        ([CONFIG, "--example=3"], "--example is for --mode=explain"),
        (["--mode=compare", "--runs=a"], "--runs names two folders"),
        (RUNS, "a holds no finished run"),
        ([CONFIG, "--runs=a,b"], "--runs is for --mode=compare"),
        ([CONFIG, *RUNS, "--config.epochs=3"], "with data.raw_dir and data.cache_dir alone"),
        ([CONFIG, *RUNS, "--config.data.raw_dir=x"], "a holds no finished run"),
        ([CONFIG, *RUNS, "--variants=cnn"], "--runs goes without --variants"),
        ([LENET, "--mode=search", "--workdir={tmp}"], "search.space is empty"),
        ([CONFIG, "--mode=compare"], "--mode=compare needs --variants"),
        ([CONFIG, "--mode=compare", "--variants=mlp,towr"], "did you mean 'tower'"),
        ([CONFIG, *COMPARE, "--config.model.padding=VALID"], "'tower' has no such field"),
        ([CONFIG, "--config.augment.rotat=5"], "did you mean 'rotate'"),
        ([LENET, "--mode=describe", "--config.model.activation=relo"], "did you mean 'relu'"),
        ([LENET, "--mode=describe", "--config.model.pooling=men"], "there are: average, max"),
        ([LENET, "--config.optimizer.schedule=cosin", "--workdir={tmp}"], "mean 'cosine'"),
        ([CONFIG, "--config.optimizer.step_epochs=5x", "--workdir={tmp}"], "step_epochs must be"),
        ([CONFIG, "--config.seed=4294967296", "--workdir={tmp}"], "seed must lie below"),
        ([CONFIG, "extra"], "'extra' is not a flag"),
        (
            ["--mode=read", "--data", "README.md", "LICENSE"],
            "'LICENSE' is not a flag; --data takes one folder, or a pattern in quotes",
        ),
        ([], "--config"),
        ([CONFIG, "--config.epochs=0", "--workdir={tmp}"], "epochs must be at least 1"),
        ([CONFIG, "--config.data.validation=1.5", "--workdir={tmp}"], "data.validation must lie"),
        ([CONFIG, "--config.data.raw_dir={tmp}/none", "--workdir={tmp}"], "raw_dir"),
        ([CONFIG, "--mode=eval", "--workdir={tmp}"], "holds no run"),
    ],
    ids=str,
)
def test_mistakes(command, arguments, said, tmp_path):
    code, _, error = command(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 1
    assert said in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


ENDS = """
import errno, os, sys, launch
end = sys.argv.pop(1)
def main(_):
    raise KeyboardInterrupt if end == "ctrl-c" else OSError(errno.ENOSPC, "Disk full", "x.csv")
launch.cli.dispatch = main
launch.cli.main()
"""
GOES_ON = "the same command goes on from the last epoch"
AFRESH = "the command without --config.resume=False goes on from the last epoch"
MAKE_ROOM = "error: x.csv: Disk full; make room, or"


@pytest.mark.parametrize(
    ("arguments", "end", "said"),
    [
        ([CONFIG], "ctrl-c", f"interrupted; {GOES_ON}"),
        ([CONFIG], "full", f"error: x.csv: Disk full; {GOES_ON}"),
        ([CONFIG, "--config.resume=False"], "ctrl-c", f"interrupted; {AFRESH}"),
        ([CONFIG, "--mode=search"], "full", "error: x.csv: Disk full; the same command goes on"),
        ([CONFIG, *COMPARE], "ctrl-c", "interrupted; the same command goes on"),
        ([CONFIG, "--mode=more-pairs"], "ctrl-c", "interrupted"),
        ([CONFIG, "--mode=eval"], "full", f"{MAKE_ROOM} --out=DIR writes elsewhere"),
        (["--mode=compare", "--runs=a,b"], "full", f"{MAKE_ROOM} choose another --workdir"),
    ],
    ids=str,
)
def test_an_end_that_nobody_planned_leads_on_where_something_goes_on(command, arguments, end, said):
    code, _, error = command(end, *arguments, program=ENDS)
    assert error == said
    assert code == (130 if end == "ctrl-c" else 1)


def test_help():
    process = subprocess.run(
        [sys.executable, "launch.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--workdir" in process.stdout
    lines = " ".join(process.stdout.split())
    for name, mode in cli.MODES.items():  # each with its flags
        flags = "".join(f" --{flag}" for flag in mode.flags)
        assert f" {name}{flags}: {mode.help} " in lines
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("name", cli.MODES)
def test_a_mode_names_a_function_that_takes_its_flags(name):
    mode = cli.MODES[name]
    parameters = inspect.signature(mode.function()).parameters
    assert {*mode.flags} - {*cli.CLUSTER} <= parameters.keys()
    assert all(flag in cli.FLAGS for flag in mode.flags)
    assert mode.trains == ("listen" in parameters)


def test_modes_that_read_find_the_run_on_drawn_digits_where_there_is_no_other(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = digits_jax.get_config("mnist")
    assert settings.finished(config) == Path("runs/mnist")
    drawn = Path("runs/mnist-drawn")
    drawn.mkdir(parents=True)
    (drawn / "config.json").touch()
    assert settings.finished(config) == drawn
    Path("runs/mnist").mkdir()  # of a start that failed
    assert settings.finished(config) == drawn
    Path("runs/mnist/config.json").touch()
    assert settings.finished(config) == Path("runs/mnist")
    config.data.source = "drawn"
    assert settings.finished(config) == drawn


@pytest.mark.parametrize(
    ("name", "source", "folder"),
    [
        ("mnist100", "auto", "mnist100"),
        ("mnist100", "mnist", "mnist100"),
        ("mnist100:tower", "fashion_mnist", "mnist100-tower-fashion_mnist"),
        ("mnist", "emnist/digits", "mnist-emnist-digits"),
        ("drawn", "drawn", "drawn"),
        ("mnist", "letters.npz", "mnist-letters"),
        ("mnist", "../my letters", "mnist-my-letters"),
        ("mnist100", "../n.npz", "mnist100-n"),
        ("mnist100", "mnist.npz", "mnist100-mnist"),
        ("mnist100", "../my letters/a", "mnist100-a"),
    ],
)
def test_the_default_folder_carries_the_source(name, source, folder, tmp_path, monkeypatch):
    (tmp_path / "my letters").mkdir()
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    (tmp_path / "in" / "letters.npz").touch()
    config = digits_jax.get_config(name, **{"data.source": source})
    assert settings.folder_of(config) == Path("runs") / folder
