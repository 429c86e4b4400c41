"""Whole runs on a few drawn digits: every config, resuming, and what is refused."""

import csv
import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FAMILIES, built, config_of, shrink, slow_except
from matplotlib.figure import Figure
from matplotlib.text import Text

from digits_jax.analysis.evaluate import evaluate
from digits_jax.console import percent
from digits_jax.core import optim
from digits_jax.core.population import slice_size
from digits_jax.data import dataset
from digits_jax.errors import UserError
from digits_jax.training import train as loop
from digits_jax.training.checkpoint import Checkpoints
from digits_jax.training.predictor import Predictor
from digits_jax.training.resolve import resolve
from digits_jax.training.train import train

pytestmark = pytest.mark.usefixtures("unpictured")

ROOT = Path(__file__).parent.parent
FILES = {"config.json", "metrics.jsonl", "summary.json", "curves.png", "confusion.png"}
FILES |= {"errors.png", "examples.png", "per_class.csv", "tensorboard", "checkpoints"}


def rows(workdir):
    """metrics.jsonl, times aside."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in lines]


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def small(cache, **fields):
    config = shrink(config_of("mnist100:mlp"), cache)
    config.model.hidden = (16,)
    config.update(**fields)
    return config


# Each network, engine and dataset, and layers that no other holds; of all configs see
# test_every_train_step_lowers_for_every_platform.
RUN = (
    *FAMILIES,
    *("mnist", "mnist100:numpy", "lenet5:numpy", "records", "records:stacked", "records:p690"),
    "demo",
)


@pytest.mark.usefixtures("pictured")
@pytest.mark.parametrize("name", slow_except(["mnist100", "two_head:mlp"], RUN))
def test_every_kind_of_config_runs(name, cache, tmp_path):
    config = shrink(config_of(name), cache)
    config.epochs = 1
    train(config, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= FILES
    augmented = any(value for field, value in config.augment.items() if field != "per_digit")
    assert (tmp_path / "augmented.png").exists() == augmented
    written = summary(tmp_path)
    assert written["data"]["source"] == "drawn"
    assert written["test"]["examples"] == 40
    assert set(written["test"]["heads"]) == set(dataset.RECIPES[config.data.dataset].heads)
    assert written["epochs"] == len(rows(tmp_path)) == 1
    assert written["steps"] == rows(tmp_path)[0]["step"] == -(-written["data"]["train"] // 32)
    assert written["members"][0]["best_epoch"] == 1
    assert 0 <= written["seconds"]["train"] < written["seconds"]["total"]


def test_the_summary_agrees_with_the_predictions(cache, tmp_path, capsys):
    """eval on the test set, and on the same images as a user's own file, gives the same figures."""
    config = small(cache)
    config.population.size = 2
    train(config, tmp_path)
    written = summary(tmp_path)
    evaluate(config, tmp_path, None, "auto")
    said = percent(written["mean"], written["std"], seeds=2)
    assert said in capsys.readouterr().out
    with (tmp_path / "predictions.csv").open() as file:
        own = list(csv.DictReader(file))
    accuracy = np.mean([int(row["number_correct"]) for row in own])
    np.testing.assert_allclose(accuracy, written["ensemble"])
    np.testing.assert_allclose(np.mean([m["test"] for m in written["members"]]), written["mean"])
    assert [m["seed"] for m in written["members"]] == [0, 1]

    data = dataset.load(config.data)
    images, labels = dataset.examples(data.test, data.recipe)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels["number"])
    evaluate(config, tmp_path, str(tmp_path / "mine.npz"), "auto")
    with (tmp_path / "predictions.csv").open() as file:
        mine = list(csv.DictReader(file))
    assert [row["number"] for row in mine] == [row["number"] for row in own]


def test_the_chosen_weights_are_those_of_the_best_epoch(cache, tmp_path):
    config = small(cache, epochs=4)
    config.optimizer.learning_rate = 0.05  # rough, so that the last epoch need not be the best
    train(config, tmp_path)
    scores = [row["validation_accuracy"] for row in rows(tmp_path)]
    member = summary(tmp_path)["members"][0]
    assert member["best_epoch"] == 1 + int(np.argmax(scores))
    np.testing.assert_allclose(member["validation"], max(scores))
    np.testing.assert_allclose(summary(tmp_path)["validation"]["accuracy"], max(scores))


def test_without_validation_the_last_epoch_counts(cache, tmp_path):
    config = small(cache)
    config.data.validation = 0.0
    train(config, tmp_path)
    assert "validation_accuracy" not in rows(tmp_path)[0]
    assert (
        summary(tmp_path)["members"][0] | {"best_epoch": 2, "validation": None}
        == summary(tmp_path)["members"][0]
    )
    assert "validation" not in summary(tmp_path)


def test_the_test_split_is_not_read_when_it_is_off(cache, tmp_path):
    train(small(cache, report_test=False), tmp_path)
    assert "test" not in summary(tmp_path)
    assert not (tmp_path / "confusion.png").exists()


def test_early_stopping_ends_a_member_alone(cache, tmp_path):
    config = small(cache, epochs=6)
    config.population.size = 4
    config.early_stopping.update(patience=1, min_delta=0.02)
    config.optimizer.learning_rate = 0.02
    train(config, tmp_path)
    histories = [[r for r in rows(tmp_path) if r["member"] == i] for i in range(4)]
    assert len({len(history) for history in histories}) > 1
    for history in histories:
        reference, expected = -1.0, 0
        for row in history:
            expected += 1
            if row["validation_accuracy"] <= reference + 0.02:
                break
            reference = row["validation_accuracy"]
        assert [row["epoch"] for row in history] == list(range(1, expected + 1))


@pytest.mark.parametrize("optimizer", slow_except(["adam"], ["adam", "muon"]))
def test_two_identical_runs_and_a_resumed_one(cache, tmp_path, optimizer):
    """The tower, with BatchNorm, dropout, EMA, fresh pairs and augmentation, stopped in its second
    epoch and started again: the same rows and weights, bit for bit.
    """

    def tower():
        config = shrink(config_of("mnist100:tower"), cache)
        config.model.update(stem=2, features=(3,))
        config.optimizer.name = optimizer
        config.epochs = 3
        return config

    whole, again, parts = (tmp_path / name for name in ("whole", "again", "parts"))
    for workdir in (whole, again):
        train(tower(), workdir)
    assert rows(whole) == rows(again)

    saved = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", _interrupted_at(2, saved))
        with pytest.raises(KeyboardInterrupt):
            train(tower(), parts)
    assert len(rows(parts)) == 2  # the second epoch's row is there, its checkpoint is not
    train(tower(), parts)
    assert rows(parts) == rows(whole)
    one, two = Predictor(whole), Predictor(parts)
    for a, b in zip(jax.tree.leaves(one.weights), jax.tree.leaves(two.weights), strict=True):
        np.testing.assert_array_equal(a, b)


def _interrupted_at(epoch, save):
    def wrapped(self, at, state, meta):
        if at == epoch:
            raise KeyboardInterrupt
        save(self, at, state, meta)

    return wrapped


COMMAND = [
    *(sys.executable, "launch.py", "--config=configs/mnist100.py:mlp", "--config.epochs=4"),
    *("--config.data.source=drawn", "--config.data.drawn_train=600", "--config.data.drawn_test=50"),
    *("--config.data.train=9600", "--config.data.test=40", "--config.batch_size=8"),
    "--config.model.hidden=(64,)",
]


@pytest.mark.slow
def test_killed_in_mid_epoch_and_started_again(cache, tmp_path):
    """kill -9, twice: metrics.jsonl ends as that of the undisturbed run."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # optimised: it trains
    command = [*COMMAND, f"--config.data.cache_dir={cache}"]

    def start(workdir):
        arguments = [*command, f"--workdir={workdir}"]
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    whole = start(tmp_path / "whole")
    killed = tmp_path / "killed"
    for epochs in (1, 2):
        process = start(killed)
        deadline = time.monotonic() + 120
        while not _has_epoch(killed, epochs):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)  # into the next epoch
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "summary.json").exists()
    assert start(killed).wait() == 0
    assert whole.wait() == 0
    assert rows(killed) == rows(tmp_path / "whole")
    assert summary(killed)["test"] == summary(tmp_path / "whole")["test"]


def _has_epoch(workdir, epoch):
    return (workdir / "checkpoints" / str(epoch)).exists()


def test_a_finished_run_says_so_and_starts_over_only_when_told(cache, tmp_path, capsys):
    train(small(cache), tmp_path)
    before = (tmp_path / "summary.json").stat().st_mtime_ns
    capsys.readouterr()
    train(small(cache), tmp_path)
    assert "finished" in capsys.readouterr().out
    assert (tmp_path / "summary.json").stat().st_mtime_ns == before
    (tmp_path / "mine.txt").write_text("not the run's")
    train(small(cache, resume=False, epochs=1), tmp_path)
    assert summary(tmp_path)["epochs"] == 1
    assert (tmp_path / "mine.txt").exists()


def test_a_committed_summary_alone_is_not_a_finished_run(cache, tmp_path):
    """A fresh clone has results without checkpoints: the same command trains."""
    train(small(cache), tmp_path)
    for path in sorted((tmp_path / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "summary.json").write_text("{}")
    train(small(cache), tmp_path)
    assert summary(tmp_path)["epochs"] == 2
    assert len(rows(tmp_path)) == 2


def test_an_interrupted_run_beside_an_old_summary_is_not_finished(cache, tmp_path):
    """A committed summary, then a run in its folder that is killed after an epoch."""
    (tmp_path / "summary.json").write_text('{"test": {}}')
    saved = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", _interrupted_at(2, saved))
        with pytest.raises(KeyboardInterrupt):
            train(small(cache), tmp_path)
    train(small(cache), tmp_path)
    assert summary(tmp_path)["epochs"] == 2


def test_starting_over_deletes_nothing_until_the_new_run_can_start(cache, tmp_path):
    train(small(cache), tmp_path)
    config = small(cache, resume=False)
    config.optimizer.schedule = "cosin"
    with pytest.raises(UserError, match="cosine"):
        train(config, tmp_path)
    assert summary(tmp_path)["epochs"] == 2
    assert len(Predictor(tmp_path).predict(np.zeros((1, 28, 56), np.uint8))["number"]) == 1


def test_finished_means_that_summary_and_weights_are_there(cache, tmp_path, capsys):
    train(small(cache), tmp_path)
    first = Predictor(tmp_path).weights
    shutil.rmtree(tmp_path / "checkpoints")
    train(small(cache), tmp_path)  # as a clone has it: the summary and model.npz
    assert "This run is finished" in capsys.readouterr().out
    (tmp_path / "model.npz").unlink()
    (tmp_path / "checkpoints").mkdir()  # as reading it could once leave it
    train(small(cache), tmp_path)
    assert "This run is finished" not in capsys.readouterr().out
    assert (tmp_path / "model.npz").exists()
    jax.tree.map(np.testing.assert_array_equal, Predictor(tmp_path).weights, first)


def test_more_epochs_of_a_constant_rate_go_on(cache, tmp_path, monkeypatch):
    """One epoch, then three: the same run as three at once, and the first is not done again."""
    monkeypatch.chdir(tmp_path)
    train(small(cache, epochs=3), "whole")
    train(small(cache, epochs=1), "grown")
    epoch, done = loop.train_epoch, []
    monkeypatch.setattr(
        loop, "train_epoch", lambda run, n, *how: done.append(n) or epoch(run, n, *how)
    )
    train(small(cache, epochs=3), "grown")
    assert done == [2, 3]
    whole, grown = (Path(folder) for folder in ("whole", "grown"))
    assert rows(grown) == rows(whole)
    assert summary(grown)["config"] == summary(whole)["config"]
    assert summary(grown)["test"] == summary(whole)["test"]
    with pytest.raises(UserError, match="epochs: 3 there, 2 now"):
        train(small(cache, epochs=2), grown)
    shutil.rmtree(grown / "checkpoints")
    with pytest.raises(UserError, match="epochs=3 but no checkpoint to go on from"):
        train(small(cache, epochs=4), grown)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_more_epochs_of_a_schedule_that_spreads_over_them_are_another_run(
    cache, tmp_path, schedule
):
    config = small(cache, epochs=1)
    config.optimizer.schedule = schedule
    train(config, tmp_path)
    config.epochs = 2
    with pytest.raises(UserError, match=f"schedule={schedule} spreads over all of them"):
        train(config, tmp_path)
    assert summary(tmp_path)["epochs"] == 1


@pytest.mark.parametrize("ended", ["stopped before the first step", "refused"])
def test_a_run_that_was_to_go_on_and_has_not_yet_is_not_finished(
    cache, tmp_path, monkeypatch, ended
):
    """Whatever ended it between its new config.json and its first new epoch."""
    train(small(cache, epochs=1), tmp_path)
    with monkeypatch.context() as patch:
        if ended == "refused":
            patch.setattr(loop, "_resume", lambda *_: (_ for _ in ()).throw(UserError("no")))
        else:
            patch.setattr(loop, "train_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises((UserError, KeyboardInterrupt)):
            train(small(cache, epochs=2), tmp_path)
    assert (tmp_path / "summary.json").exists() == (ended == "refused")
    train(small(cache, epochs=2), tmp_path)
    assert summary(tmp_path)["epochs"] == len(rows(tmp_path)) == 2


def test_a_run_that_goes_on_leaves_nothing_of_its_shorter_self(cache, tmp_path):
    train(small(cache, epochs=1), tmp_path)
    left = ("predictions.csv", "attribution.png", "filters.png")
    for name in left:
        (tmp_path / name).touch()
    (tmp_path / "export").mkdir()
    (tmp_path / "mine.txt").touch()
    train(small(cache, epochs=2), tmp_path)
    assert not any((tmp_path / name).exists() for name in (*left, "export"))
    assert (tmp_path / "mine.txt").exists()


def test_every_schedule_is_known_to_depend_on_the_length_or_not():
    """By its factors over the first two of two or of five epochs."""
    for schedule in optim.SCHEDULES:
        optimizer = config_of("mnist").optimizer
        optimizer.update(schedule=schedule, step_epochs=(1,), warmup=0.5)
        short, long = (optim.rate_schedule(optimizer, epochs, 10) for epochs in (2, 5))
        alike = all(float(short(step)) == float(long(step)) for step in range(20))
        assert alike == (schedule not in optim.OVER_ALL_EPOCHS)


def test_a_config_stays_as_it_was(cache, tmp_path, monkeypatch):
    """Though the run decides on a source, a slice and a size; and a path may be a str."""
    monkeypatch.setattr(
        "digits_jax.data.sources.load", lambda *_: (_ for _ in ()).throw(UserError("no MNIST"))
    )
    config = small(cache)
    config.epochs, config.data.source, config.data.folds = 1, "auto", 2
    before = config.to_json()
    train(config, str(tmp_path / "run"))
    assert config.to_json() == before
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert recorded["data"]["source"] == "drawn"
    assert recorded["population"] == {"size": 2, "slice": slice_size(2, jax.default_backend())}
    assert resolve(config).data.source == "drawn"
    assert config.to_json() == before


def test_what_auto_trains_on_drawn_digits_has_a_folder_of_its_own(
    cache, tmp_path, monkeypatch, capsys
):
    """Without MNIST, and later with it: the same command, two runs, and each says which it is."""
    monkeypatch.chdir(tmp_path)

    def absent(*_):
        raise UserError("there is no network")

    monkeypatch.setattr("digits_jax.data.sources.load", absent)
    config = small(cache, epochs=1)
    config.data.source = "auto"
    train(config)
    said = capsys.readouterr().out
    assert "DRAWN" in said
    assert "there is no network" in said
    assert "--config.data.source=mnist" in " ".join(said.split())
    assert "%, drawn digits" in said
    assert [path.name for path in Path("runs").iterdir()] == ["mnist100-mlp-drawn"]
    assert summary(Path("runs/mnist100-mlp-drawn"))["data"]["source"] == "drawn"
    train(config)
    assert "finished" in capsys.readouterr().out

    def unattended():
        config.data.source = "mnist"
        with pytest.raises(UserError, match="no network"):
            train(config)
        config.data.source = "auto"

    unattended()
    digits = dataset.drawn.digits(3, 250), dataset.drawn.digits(4, 60)
    monkeypatch.setattr("digits_jax.data.sources.load", lambda *_: digits)
    train(config)
    assert "DRAWN" not in capsys.readouterr().out
    assert summary(Path("runs/mnist100-mlp"))["data"]["source"] == "mnist"
    assert summary(Path("runs/mnist100-mlp-drawn"))["data"]["source"] == "drawn"

    # It goes on with its own, or not at all.
    monkeypatch.setattr("digits_jax.data.sources.load", absent)
    (Path("runs/mnist100-mlp") / "summary.json").unlink()
    with pytest.raises(UserError, match="no network"):
        train(config)


def test_a_drawn_run_in_a_folder_that_was_named_stays_one(cache, tmp_path, monkeypatch, capsys):
    config = small(cache, epochs=1)
    train(config, tmp_path)
    monkeypatch.setattr(
        "digits_jax.data.sources.load", lambda *_: pytest.fail("it began with drawn digits")
    )
    config.data.source = "auto"
    capsys.readouterr()
    train(config, tmp_path)
    assert "It is a run on DRAWN digits" in capsys.readouterr().out
    config.data.source = "mnist"
    with pytest.raises(UserError, match="source: drawn there, mnist now"):
        train(config, tmp_path)


def test_pictures_of_drawn_digits_say_so_once(cache, tmp_path, monkeypatch, capsys):
    said, savefig = {}, Figure.savefig

    def keep(figure, path, **kwargs):
        savefig(figure, path, **kwargs)
        said[path.name] = [text.get_text() for text in figure.findobj(Text)]

    monkeypatch.setattr(Figure, "savefig", keep)
    train(small(cache, epochs=1), tmp_path)
    pictures = {"curves.png", "confusion.png", "errors.png", "calibration.png", "examples.png"}
    assert said.keys() == pictures
    for texts in said.values():
        assert len([text for text in texts if "drawn digits" in text]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test ")]
    assert line.endswith("drawn digits")


def test_a_summary_keeps_no_password(cache, tmp_path, monkeypatch):
    url = "--config.search.storage=postgresql://me:secret@host:5432/digits"
    monkeypatch.setattr(sys, "argv", ["launch.py", url, "--config.seed=1"])
    train(small(cache, epochs=1), tmp_path)
    command = summary(tmp_path)["command"]
    assert "secret" not in command
    assert "postgresql://me:***@host:5432/digits --config.seed=1" in command.replace("'", "")


def test_starting_over_leaves_nothing_of_the_run_before(cache, tmp_path):
    train(small(cache), tmp_path)
    for name in ("export", "epochs", "interrupted"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "of-the-run-before").touch()
    train(small(cache, resume=False), tmp_path)
    assert not list(tmp_path.rglob("of-the-run-before"))


def test_programs_are_compiled_once_and_ahead(cache, tmp_path, monkeypatch):
    """Slices of two sizes, a shorter last dispatch, after memory was asked about."""
    compiled = []
    compile_ = jax.stages.Lowered.compile

    def counted(lowered, *how, **more):
        compiled.append(lowered)
        return compile_(lowered, *how, **more)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    config = small(cache)
    config.data.train = 150
    config.population.update(size=3, slice=2)
    run = dataclasses.replace(built(config), chunk=2)
    assert run.bytes_needed() > 0
    clock = loop.Clock()
    compiled.clear()
    first = loop.train_epoch(run, 1, clock)
    loop.train_epoch(run, 2, clock)
    assert len(compiled) == 0
    assert clock.seconds["compile"] > 0
    assert all(row["seconds"] > 0 for row in first)


def test_a_whole_epoch_in_one_dispatch_has_its_own_time(cache, tmp_path, monkeypatch, capsys):
    """Where compiling was most of it, the epoch's line once said 30,016,000 images/s."""
    build = loop.build
    monkeypatch.setattr(loop, "build", lambda c: dataclasses.replace(build(c), chunk=1024))
    train(small(cache, epochs=1), tmp_path)
    seconds = summary(tmp_path)["seconds"]
    assert seconds["compile"] > seconds["train"] > 0
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row["seconds"] == pytest.approx(seconds["train"], abs=0.01)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (80, [
            "Accuracy as trained is of the epoch's own steps, with dropout and augmentation;",
            "validation is of digits not trained on.",
            "  epoch   loss as trained validation     best  images/s   time   at most",
            "    1/3 0.5000    90.00 %    97.50 %  98.00 %     2,000    2 s      20 s",
            "    3/3 0.2500    91.00 %    98.50 %  98.00 %     2,000    2 s",
        ]),
        (40, [
            "Accuracy as trained is of the epoch's",
            "own steps, with dropout and",
            "augmentation; validation is of digits",
            "not trained on.",
            "  epoch as trained validation   at most",
            "    1/3    90.00 %    97.50 %      20 s",
            "    3/3    91.00 %    98.50 %",
        ]),
    ],
)  # fmt: skip
def test_the_lines_of_the_epochs_say_what_they_hold(columns, said, capsys, monkeypatch):
    """Two members of 2,000 images; the first one's weights are its best so far."""
    config = config_of("lenet5")
    config.epochs, config.early_stopping.patience, config.model.dropout = 3, 2, 0.1
    config.augment.rotate = 5.0
    scores = np.array([0.98, -np.inf])
    run = types.SimpleNamespace(config=config, images_per_epoch=2000, scores=lambda: scores)
    monkeypatch.setattr(loop.console, "width", columns)
    table = loop.EpochTable(run)

    def member(**values):
        return {"seconds": 1.0} | values

    first = member(loss=0.4, accuracy=0.9, validation_accuracy=0.97)
    table.print(1, [first, member(loss=0.6, accuracy=0.9, validation_accuracy=0.98)], [10.0])
    last = member(loss=0.25, accuracy=0.91, validation_accuracy=0.985)
    table.print(3, [last, last], [10.0, 10.0, 10.0])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == said
    assert max(map(len, lines)) <= columns


def test_without_validation_and_noise_there_is_less_to_say(capsys):
    config = config_of("mnist:mlp10")
    config.epochs = 1
    run = types.SimpleNamespace(config=config, images_per_epoch=2000)
    loop.EpochTable(run).print(1, [{"seconds": 1.0, "loss": 0.5, "accuracy": 0.9}], [2.0])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Accuracy as trained is of the epoch's own steps."
    assert said[1].split() == ["epoch", "loss", "as", "trained", "images/s", "time", "left"]


def test_bfloat16_on_a_cpu_is_warned_of(cache, capsys, monkeypatch):
    run = built(small(cache))
    loop._introduce(run, Path("runs"))
    assert "bfloat16" not in capsys.readouterr().out
    run = dataclasses.replace(run, config=small(cache, bfloat16=True))
    monkeypatch.setattr(loop.jax, "default_backend", lambda: "gpu")
    loop._introduce(run, Path("runs"))
    assert "bfloat16" not in capsys.readouterr().out
    monkeypatch.setattr(loop.jax, "default_backend", lambda: "cpu")
    loop._introduce(run, Path("runs"))
    assert "config.bfloat16=True is slower than float32 on CPU" in capsys.readouterr().out


def test_sums_of_the_training_split_keep_no_answers(cache, tmp_path, monkeypatch):
    run = built(small(cache))
    own = loop.eval_weights(run.states[0]), run.members[0]
    sums, answers = run.evaluate(*own, run.data.train)
    assert answers["number"].shape == (1, 96, 100)
    monkeypatch.setattr(np, "concatenate", lambda *_, **__: pytest.fail("it keeps the answers"))
    alone, none = run.evaluate(*own, run.data.train, answers=False)
    assert none == {}
    jax.tree.map(np.testing.assert_array_equal, alone, sums)


def test_the_test_split_can_be_asked_for_later(cache, tmp_path):
    train(small(cache, report_test=False), tmp_path)
    trained = rows(tmp_path)
    train(small(cache), tmp_path)
    assert summary(tmp_path)["test"]["examples"] == 40
    assert rows(tmp_path) == trained


def test_slices_and_scanned_steps_give_the_same_run(cache, tmp_path, monkeypatch):
    """Three members one by one, and in slices of two with two steps per dispatch: as on a GPU."""

    def three(width):
        config = small(cache)
        config.data.train = 150  # five steps, so that the last dispatch is shorter
        config.population.update(size=3, slice=width)
        return config

    train(three(1), tmp_path / "one")
    build = loop.build
    monkeypatch.setattr(loop, "build", lambda c: dataclasses.replace(build(c), chunk=2))
    train(three(2), tmp_path / "two")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        np.testing.assert_allclose(list(one.values()), list(two.values()), rtol=1e-3)


def test_heads_keep_their_order(cache, tmp_path):
    config = shrink(config_of("two_head:mlp"), cache)
    config.epochs = 1
    train(config, tmp_path)
    evaluate(config, tmp_path, None, "auto")
    header = (tmp_path / "predictions.csv").read_text().splitlines()[0]
    assert header.index("upper") < header.index("lower")
    assert list(summary(tmp_path)["test"]["heads"]) == ["upper", "lower"]


def test_a_workdir_of_another_config(cache, tmp_path):
    train(small(cache), tmp_path)
    kept = rows(tmp_path)
    with pytest.raises(UserError, match=r"batch_size: 32 there, 16 now"):
        train(small(cache, batch_size=16), tmp_path)
    assert rows(tmp_path) == kept
    other = config_of("two_head")
    with pytest.raises(UserError, match="a run of mnist100-mlp, not of two_head"):
        evaluate(other, tmp_path, None, "auto")


def test_a_config_json_that_is_none(cache, tmp_path):
    (tmp_path / "config.json").write_text("[1, 2")
    with pytest.raises(UserError, match="is not the config of a run"):
        train(small(cache), tmp_path)


def test_an_unwritable_workdir(cache, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        train(small(cache), tmp_path / "file" / "run")


def test_eval_of_nothing(cache, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        evaluate(small(cache), tmp_path, None, "auto")


def test_the_checkpoint_before_a_damaged_one_is_taken(cache, tmp_path, caplog):
    train(small(cache, epochs=3), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    for path in (tmp_path / "checkpoints" / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    (tmp_path / "model.npz").unlink()
    Predictor(tmp_path)
    assert "epoch 3 cannot be read" in caplog.text
    before = rows(tmp_path)
    (tmp_path / "summary.json").unlink()
    train(small(cache, epochs=3), tmp_path)
    assert rows(tmp_path) == before
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.epochs() == [3, 2]


def test_a_resumed_run_keeps_the_source_it_began_with(cache, tmp_path, monkeypatch):
    train(small(cache, epochs=1), tmp_path)
    (tmp_path / "summary.json").unlink()
    monkeypatch.setattr("digits_jax.data.sources.load", lambda *_: pytest.fail("began with drawn"))
    config = small(cache, epochs=1)
    config.data.source = "auto"
    train(config, tmp_path)
    assert summary(tmp_path)["data"]["source"] == "drawn"


def test_divergence_is_one_clear_line(cache, tmp_path):
    config = small(cache)
    config.optimizer.update(name="sgd", learning_rate=1e30)
    with pytest.raises(UserError, match="a lower --config"):
        train(config, tmp_path)


def test_the_programs_of_a_run_go_with_it(cache):
    """A search of many rounds would else fill the memory."""
    client = jax.local_devices()[0].client

    def one():
        run = built(small(cache))
        loop.train_epoch(run, 1, loop.Clock())

    counts = []
    for _ in range(3):
        one()
        gc.collect()
        counts.append(len(client.live_executables()))
    assert counts[2] <= counts[1]  # fewer, if programs of other tests went meanwhile
