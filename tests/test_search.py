"""Searches: what they ask for, what survives, what several processes share."""

import csv
import gc
import importlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import config_of, shrink
from ml_collections import ConfigDict
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from digits_jax.errors import UserError
from digits_jax.search import search as module
from digits_jax.search import study as studies
from digits_jax.search.search import rungs, search, space_of

pytestmark = pytest.mark.usefixtures("unpictured")

ROOT = Path(__file__).parent.parent
RATE = {"optimizer": {"learning_rate": ("log", 1e-4, 1e-1)}}


def small(cache, space, **fields):
    config = shrink(config_of("mnist:mlp10"), cache)
    config.search.space = ConfigDict(space)
    config.search.update(**fields)
    config.epochs = 1
    return config


def table(workdir):
    with (workdir / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def guessed(monkeypatch):
    """Instead of training, trials are told a score that is best at a rate of 0.01."""
    groups = []

    def told(study, group, halving):
        groups.append([trial.number for trial, _ in group])
        for trial, config in group:
            distance = np.log10(config.optimizer.learning_rate) + 2
            study.tell(trial, 1 - 0.1 * distance**2)

    monkeypatch.setattr(module, "_train_group", told)
    return groups


def test_a_search_end_to_end(cache, tmp_path):
    """Real training: groups by batch size, members that differ in rate and dropout; retraining."""
    space = RATE | {"model": {"dropout": ("uniform", 0.0, 0.5)}, "batch_size": ("choice", 32, 48)}
    config = small(cache, space, trials=5, round=4, retrain=2)
    config.optimizer.learning_rate = 1e-4  # so that another wins
    search(config, tmp_path)
    rows = table(tmp_path)
    assert [row["trial"] for row in rows] == list("01234")
    default = rows[0]
    assert float(default["optimizer.learning_rate"]) == config.optimizer.learning_rate
    assert (default["batch_size"], float(default["model.dropout"])) == ("32", 0.0)
    assert {row["batch_size"] for row in rows} == {"32", "48"}
    best = max(rows, key=lambda row: float(row["validation"]))
    retrained = tmp_path / f"trial-{best['trial']}-2-seeds" / "summary.json"
    retrained = json.loads(retrained.read_text())
    assert retrained["config"]["batch_size"] == int(best["batch_size"])
    assert retrained["config"]["optimizer"]["learning_rate"] == float(
        best["optimizer.learning_rate"]
    )
    assert [member["seed"] for member in retrained["members"]] == [1, 2]
    text = (tmp_path / "comparison.md").read_text()
    assert "points of the two seeds that both have" in text
    assert "McNemar" in text
    assert (tmp_path / "search.png").exists()


@pytest.fixture
def retrained(monkeypatch):
    """Instead of retraining: {folder: the config it would have been trained with}."""
    runs = {}

    def train(config, folder, _):
        assert folder not in runs
        runs[folder] = config.copy_and_resolve_references()

    def compare(first, second, workdir):
        (workdir / "comparison.md").write_text(f"{second} {first}", encoding="utf-8")

    monkeypatch.setattr(module.loop, "train", train)
    monkeypatch.setattr(module, "compare_runs", compare)
    return runs


@pytest.mark.usefixtures("guessed")
@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"trials": 3}, 0.01),  # the first trial, than which none is better
        ({"trials": 7, "sampler": "grid"}, 0.01),  # the fifth of the grid, but for rounding
        ({"trials": 7, "sampler": "grid"}, float(np.geomspace(1e-4, 1e-1, 7)[4])),
    ],
)
def test_where_the_default_wins_it_is_retrained_once(
    cache, tmp_path, retrained, capsys, fields, rate
):
    """There is nothing to compare it with, and no comparison of an earlier search stays."""
    config = small(cache, RATE, retrain=2, **fields)
    config.optimizer.learning_rate = rate
    assert np.float32(np.geomspace(1e-4, 1e-1, 7)[4]) == np.float32(0.01)
    (tmp_path / "comparison.md").write_text("of an earlier search", encoding="utf-8")
    search(config, tmp_path)
    ((folder, chosen),) = retrained.items()
    assert folder == tmp_path / "default-2-seeds"
    assert (chosen.seed, chosen.population.size) == (1, 2)
    assert not (tmp_path / "comparison.md").exists()
    said = f"The default is the best of {fields['trials']} trials: there is nothing to compare it"
    assert said in capsys.readouterr().out


@pytest.mark.usefixtures("guessed")
def test_what_beats_the_default_is_retrained_beside_it(cache, tmp_path, retrained):
    """Also where a grid, which has no first trial of its own, holds the default."""
    config = small(cache, RATE, trials=7, retrain=2, sampler="grid")
    config.optimizer.learning_rate = 1e-3
    search(config, tmp_path)
    default, best = retrained
    assert [default.name, best.name] == ["default-2-seeds", "trial-4-2-seeds"]
    assert retrained[default].optimizer.learning_rate == 1e-3
    assert retrained[best].optimizer.learning_rate == pytest.approx(0.01)
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert text == f"{best} {default}"
    longer = small(cache, RATE, trials=7, sampler="grid")
    longer.optimizer.learning_rate, longer.resume = 1e-3, False
    search(longer, tmp_path)  # another search, which retrains nothing
    assert not (tmp_path / "comparison.md").exists()


@pytest.mark.usefixtures("guessed")
def test_a_search_that_is_started_over_retrains_anew(cache, tmp_path, retrained):
    for resume in (True, False):
        config = small(cache, RATE, trials=3, retrain=2)
        config.resume = resume
        search(config, tmp_path)
        assert [run.resume for run in retrained.values()] == [resume] * len(retrained)
        retrained.clear()


def test_no_teacher_is_deleted(cache, tmp_path, monkeypatch, guessed, retrained):
    """--config.resume=False and a teacher where the search retrains, however it is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "s", target_is_directory=True)
    teachers = ("s/default-2-seeds", "s/trial-17-2-seeds", "link/default-2-seeds")
    spaces = [RATE] * 3 + [RATE | {"distill": {"teacher": ("choice", "", teachers[0])}}]
    for teacher, space in zip((*teachers, ""), spaces, strict=True):
        config = small(cache, space, trials=2, retrain=2)
        config.distill.teacher, config.resume = teacher, False
        with pytest.raises(UserError, match=r"config\.distill\.teacher=.*-2-seeds is where"):
            search(config, "s")
        assert not (tmp_path / "s").exists()
    teacher = SimpleNamespace(digest=str)
    monkeypatch.setattr(module, "Predictor", lambda _: teacher)
    for fields in ({"resume": True}, {"search": {"retrain": 3}}):  # nothing would be deleted
        config = small(cache, RATE, trials=2, retrain=2)
        config.distill.teacher, config.resume = teachers[0], False
        config.update(fields)
        search(config, "s")
    assert len(guessed) == 2


@pytest.mark.usefixtures("guessed")
def test_a_search_leaves_its_config_as_it_was(cache, tmp_path, retrained):
    config = small(cache, RATE, trials=2, retrain=2)
    config.resume = False
    config.data.source, config.data.raw_dir = "auto", ""
    config.data.update(train=0, test=0)
    before = config.to_dict()
    drawn = module.dataset.load(small(cache, RATE).data)

    def no_network(*_):
        raise UserError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.dataset, "load", lambda _: drawn)
        patch.setattr(module.dataset.sources, "load", no_network)
        search(config, str(tmp_path))
    assert config.to_dict() == before
    assert next(run.data.source for run in retrained.values()) == "drawn"


@pytest.mark.usefixtures("guessed")
def test_paths_with_brackets_are_printed_as_they_are(cache, tmp_path, capsys):
    folder = tmp_path / "lr[" / "0.1]"
    search(small(cache, RATE, trials=2), folder)
    out = capsys.readouterr().out
    assert f"are in {folder}\n" in out
    assert "best of 2 trials: number 1" in out
    assert "[bold]" not in out


def test_a_trial_is_the_run_it_stands_for(cache, tmp_path):
    """The same rate trained alone reads the same on validation, whatever its neighbours."""
    from digits_jax.training.train import train

    config = small(cache, RATE, trials=3, round=3)
    search(config, tmp_path / "search")
    row = table(tmp_path / "search")[2]
    alone = small(cache, RATE)
    alone.optimizer.learning_rate = float(row["optimizer.learning_rate"])
    train(alone, tmp_path / "alone")
    member = json.loads((tmp_path / "alone" / "summary.json").read_text())["members"][0]
    assert float(row["validation"]) == pytest.approx(member["validation"], abs=1e-6)


def test_divergence_is_a_bad_trial_and_halving_drops_the_worse(cache, tmp_path, capsys):
    """Rates so large that the loss is no number; the others go on."""
    space = {"optimizer": {"learning_rate": ("choice", 1e30, 1e-3, 1e-2, 1e-4)}}
    config = small(cache, space, trials=4, round=4, sampler="grid", halving=2)
    config.epochs = 2
    search(config, tmp_path)
    rows = {float(row["optimizer.learning_rate"]): row for row in table(tmp_path)}
    assert len(rows) == 4
    assert {rate: row["state"] for rate, row in rows.items() if row["state"] == "pruned"} == {
        1e30: "pruned",
        1e-4: "pruned",
    }
    assert rows[1e-4]["epochs"] == "1"
    said = [line for line in capsys.readouterr().out.splitlines() if "learning_rate" in line][:4]
    assert sorted(line.split()[0] for line in said) == list("0123")  # each as it ends
    assert "–" in said[0]
    assert "(diverged after epoch 1)  optimizer.learning_rate 1e+30" in said[0]
    assert "% (stopped after epoch 1)  optimizer.learning_rate 0.0001" in said[1]
    for line in said[2:]:
        rate = float(line.split()[-1])
        assert line.split()[1] == f"{100 * float(rows[rate]['validation']):.2f}"


def test_rungs():
    assert rungs(9, 3) == {1, 3}
    assert rungs(10, 2) == {1, 2, 5}
    assert rungs(9, 0) == rungs(1, 3) == set()


def test_rounds_and_the_default_first(cache, tmp_path, guessed):
    search(small(cache, RATE, trials=7, round=3), tmp_path)
    assert guessed == [[0, 1, 2], [3, 4, 5], [6]]
    rows = table(tmp_path)
    assert (
        float(rows[0]["optimizer.learning_rate"])
        == config_of("mnist:mlp10").optimizer.learning_rate
    )
    assert len({row["optimizer.learning_rate"] for row in rows}) == 7


def test_a_search_goes_on_and_can_be_repeated(cache, tmp_path, guessed):
    """In two parts it is the search in one, and a finished one asks for nothing."""
    search(small(cache, RATE, trials=6, round=3), tmp_path / "whole")
    for trials in (3, 6, 6):
        search(small(cache, RATE, trials=trials, round=3), tmp_path / "parts")
    assert table(tmp_path / "whole") == table(tmp_path / "parts")
    assert len(guessed) == 4
    again = small(cache, RATE, trials=3, round=3)
    again.resume = False
    search(again, tmp_path / "parts")
    assert len(table(tmp_path / "parts")) == 3


def test_another_search_in_the_same_study(cache, tmp_path, guessed):
    search(small(cache, RATE, trials=2), tmp_path)
    other = small(cache, {"label_smoothing": ("uniform", 0.0, 0.1)}, trials=2)
    with pytest.raises(UserError, match=r"searches another config .*label_smoothing"):
        search(other, tmp_path)
    longer = small(cache, RATE, trials=2)
    longer.epochs = 3
    with pytest.raises(UserError, match="epochs: 1 there, 3 now"):
        search(longer, tmp_path)


def test_a_grid_is_every_point(cache, tmp_path, guessed):
    space = RATE | {"batch_size": ("choice", 32, 64)}
    search(small(cache, space, trials=8, round=8, sampler="grid"), tmp_path)
    points = {
        (row["batch_size"], round(float(row["optimizer.learning_rate"]), 8))
        for row in table(tmp_path)
    }
    rates = (1e-4, 1e-3, 1e-2, 1e-1)
    assert points == {(size, rate) for size in ("32", "64") for rate in rates}


def test_a_default_outside_the_space_is_still_the_first_trial(cache, tmp_path, guessed):
    space = {"optimizer": {"weight_decay": ("log", 1e-6, 1e-2)}}
    search(small(cache, space, trials=3), tmp_path)
    decays = [float(row["optimizer.weight_decay"]) for row in table(tmp_path)]
    assert decays[0] == config_of("mnist:mlp10").optimizer.weight_decay == 0
    assert all(1e-6 <= decay <= 1e-2 for decay in decays[1:])


SCRIPT = """
import os, signal, sys, time
import numpy as np
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from conftest import config_of, shrink
from ml_collections import ConfigDict
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool
from digits_jax.search import search as module
from digits_jax.search import study as studies

def told(study, group, halving):
    for trial, config in group:
        if trial.number == {kill}:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        study.tell(trial, 0.5)

module._train_group = told
config = shrink(config_of("mnist:mlp10"), {cache!r})
config.search.space = ConfigDict({space!r})
config.search.update(trials=12, round=2)
module.search(config, module.Path({workdir!r}))
"""


def start(cache, workdir, kill=-1):
    code = SCRIPT.format(
        root=str(ROOT), cache=str(cache), space=RATE, workdir=str(workdir), kill=kill
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT)


@pytest.mark.slow
def test_two_processes_share_a_study(cache, tmp_path):
    """Together they make exactly the trials that were asked for, none twice."""
    processes = [start(cache, tmp_path) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    url = database(tmp_path)
    storage = module.optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    trials = module.optuna.load_study(study_name="mnist-mlp10", storage=storage).trials
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    assert len(done) == 12
    assert len({t.params["optimizer.learning_rate"] for t in done}) == 12
    assert sum("default" in t.user_attrs for t in done) == 1
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    owners = {tuple(t.user_attrs["owner"]) for t in done}
    assert len(owners) == 2


def test_a_killed_search_goes_on(cache, tmp_path, guessed):
    """The trials that were under way, the default among them, are asked for again."""
    assert start(cache, tmp_path, kill=0).wait(timeout=300) < 0
    config = shrink(config_of("mnist:mlp10"), str(cache))
    config.search.space = ConfigDict(RATE)
    config.search.update(trials=12, round=2)
    search(config, tmp_path)
    rows = table(tmp_path)
    assert len(rows) == 12
    default = config.optimizer.learning_rate
    assert sum(float(row["optimizer.learning_rate"]) == default for row in rows) == 1
    assert len({row["optimizer.learning_rate"] for row in rows}) == 12


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space is empty"),
        (
            {"optimizer": {"learning_rat": ("log", 1e-4, 1e-2)}},
            "did you mean 'optimizer.learning_rate'",
        ),
        ({"data": {"seed": ("choice", 0, 1)}}, r"space\.data\.seed: no field that can be searched"),
        (
            {"optimizer": {"learning_rate": ("log", 1e-2, 1e-4)}},
            "`low <= high` must hold, but got",
        ),
        (
            {"optimizer": {"learning_rate": ("log", 0, 1e-4)}},
            "`low > 0` must hold for `log=True`",
        ),
        ({"optimizer": {"learning_rate": ("logarithmic", 1, 2)}}, "must be like"),
        ({"optimizer": {"learning_rate": 1e-3}}, "must be like"),
        ({"optimizer": {"learning_rate": ("log", 1)}}, "takes two numbers"),
        ({"model": {"dropout": ("uniform", 0.0, 1.5)}}, r"config\.model\.dropout must lie in"),
        ({"batch_size": ("choice", "many", "few")}, r"config\.search\.space"),
    ],
)
def test_spaces_that_make_no_sense(cache, space, message):
    with pytest.raises(UserError, match=message):
        space_of(small(cache, space))


def test_without_optuna_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r'needs optuna: pip install "digits_jax\[search\]"$'):
        importlib.reload(sys.modules["digits_jax.search"])


def test_an_unknown_sampler(cache, tmp_path):
    with pytest.raises(UserError, match="did you mean 'random'"):
        search(small(cache, RATE, sampler="randon"), tmp_path)


@pytest.fixture
def unclosed():
    """SQLAlchemy leaves the connection of an engine that could not be made to the collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.parametrize(
    ("url", "module_name", "said"),
    [
        ("postgresql+psycopg://u:secret@h/x", "psycopg", 'pip install "psycopg[binary]"'),
        ("postgresql+psycopg2://u:secret@h/x", "psycopg2", "pip install psycopg2-binary"),
        ("mysql://u:secret@h/x", "MySQLdb", "pip install mysqlclient"),
        ("mysql+pymysql://u:secret@h/x?password=secret", "pymysql", "pip install pymysql"),
        ("flatfile://u:secret@h/x", "", "there is no database 'flatfile'"),
        ("postgresql+flat://u:secret@h/x", "", r"there is no database 'postgresql+flat'"),
        ("postgresql:u:secret@h/x", "", "is no database URL"),
        ("postgresql://u:secret@h:port/x", "", "is no database URL"),
        ("sqlite://", "", "names no file"),
        ("sqlite:///:memory:", "", "names no file"),
    ],
)
def test_storages_that_cannot_be(cache, tmp_path, monkeypatch, url, module_name, said):
    """One line before anything is loaded: the package to install, and never a password."""
    monkeypatch.setitem(sys.modules, module_name, None)  # as if it were not installed
    monkeypatch.setattr(module.dataset, "load", lambda _: pytest.fail("too late"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"config.search.storage.*{re.escape(said)}") as caught:
        search(small(cache, RATE, storage=url), tmp_path / "s")
    assert len(str(caught.value).splitlines()) == 1
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there(cache, tmp_path, monkeypatch):
    """One line of what its driver says, without the password even if the driver says it."""

    def refused(*_, **__):
        error = ConnectionError("no answer to u:secret\nIs the server running?")
        raise studies.SQLAlchemyError from error

    monkeypatch.setattr(studies.URL, "get_dialect", lambda _: type("", (), {"import_dbapi": str}))
    monkeypatch.setattr(studies.optuna.storages, "RDBStorage", refused)
    url = "postgresql://u:secret@localhost:1/x?password=secret"
    config = small(cache, RATE, storage=url)
    with pytest.raises(UserError) as caught, studies.opened(config, tmp_path, {}, {}, []):
        pytest.fail("there is no such server")
    said = str(caught.value)
    assert said.startswith(
        "the study in postgresql://u:***@localhost:1/x cannot be used: no answer to u:***; "
    )
    assert len(said.splitlines()) == 1


@pytest.mark.usefixtures("unclosed")
def test_a_damaged_storage(cache, tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(UserError, match=r"study\.db cannot be used: file is not a database"):
        search(small(cache, RATE), tmp_path)
    assert (tmp_path / "study.db").read_bytes().startswith(b"no database")


@pytest.mark.usefixtures("unclosed")
def test_a_locked_storage(cache, tmp_path, guessed, monkeypatch):
    search(small(cache, RATE, trials=2), tmp_path)
    monkeypatch.setattr(studies, "_TIMEOUT", 0.1)
    lock = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="database is locked"):
            search(small(cache, RATE, trials=4), tmp_path)
    finally:
        lock.close()
    search(small(cache, RATE, trials=4), tmp_path)
    assert len(table(tmp_path)) == 4


def study_of(config, workdir):
    """Four trials at random."""
    config.search.update(trials=4, sampler="random")
    space = space_of(config)
    points = [(module._default(config, space), {"default": True})]
    return studies.opened(config, workdir, {}, space, points)


def database(workdir):
    return f"sqlite:///{workdir / 'study.db'}"


def test_a_process_that_dies_between_asking_and_its_values(cache, tmp_path, monkeypatch):
    """The default comes back as it was, and no trial is queued again twice."""
    config = small(cache, RATE)
    with study_of(config, tmp_path) as study:
        monkeypatch.setattr(study, "_suggest", lambda trial: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            study.ask(1)
    with study_of(config, tmp_path) as study:
        (trial,) = study.ask(1)
        assert trial.user_attrs["default"]
        assert trial.params == {"optimizer.learning_rate": config.optimizer.learning_rate}
        assert len(study.ask(9)) == 3  # and no more: the lost one does not count
        study.held.clear()  # as if another process had them, and died
        for _ in range(3):
            study._requeue()
        waiting = study.trials(TrialState.WAITING)
        retried = [t.user_attrs["retry_of"] for t in waiting]
        assert len(retried) == len(set(retried)) == 4


def test_a_live_trial_is_not_buried(cache, tmp_path, monkeypatch):
    """Of another process on this machine, and of a machine that was heard of lately."""
    with study_of(small(cache, RATE), tmp_path) as study:
        one, two, three = study.ask(3)
        one.set_user_attr("owner", [studies.platform.node(), os.getppid()])
        for trial, age in ((two, 10), (three, 10_000)):
            trial.set_user_attr("owner", ["elsewhere", 1])
            trial.set_user_attr("alive", studies.time.time() - age)
        study.held.clear()
        study._requeue()
        states = {trial.number: trial.state for trial in study.study.trials}
        assert states[one.number] == states[two.number] == TrialState.RUNNING
        assert states[three.number] == TrialState.FAIL
        study.report(three, 0.5, 1)  # what its owner says now does no harm
        study.tell(three, 0.5)


def test_windows_is_asked_for_no_process(cache, tmp_path, monkeypatch):
    """There os.kill(pid, 0) ends what it was to look for: only the sign of life counts."""
    with study_of(small(cache, RATE), tmp_path) as study:
        fresh, old, own = study.ask(3)
        for trial, age in ((fresh, 10), (old, 10_000)):
            trial.set_user_attr("owner", [studies.platform.node(), os.getppid()])
            trial.set_user_attr("alive", studies.time.time() - age)
        study.held.clear()
        monkeypatch.setattr(studies.platform, "system", lambda: "Windows")
        monkeypatch.setattr(studies.os, "kill", lambda *_: pytest.fail("it was killed"))
        study._requeue()
        states = {trial.number: trial.state for trial in study.study.trials}
        assert states[fresh.number] == TrialState.RUNNING
        assert states[old.number] == states[own.number] == TrialState.FAIL


def test_the_heartbeat(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "_HEARTBEAT", 0.01)
    with study_of(small(cache, RATE), tmp_path) as study:
        (trial,) = study.ask(1)
        trial.set_user_attr("alive", 0)
        with study.heartbeat():
            for _ in range(500):
                if study.study.trials[0].user_attrs["alive"] > 0:
                    break
                studies.time.sleep(0.01)
        assert study.study.trials[0].user_attrs["alive"] > 0


def test_nothing_left_to_do(cache, tmp_path, guessed, monkeypatch):
    """All trials are another process's: nothing to report, nothing to retrain."""
    config = small(cache, RATE, trials=2, round=2, retrain=2)
    monkeypatch.setattr(module, "_train", lambda *_: pytest.fail("there is nothing to train"))
    monkeypatch.setattr(studies, "_ended", lambda _: False)
    space = space_of(config)
    config.data.source = "drawn"
    points = [(module._default(config, space), {"default": True})]
    with studies.opened(config, tmp_path, module._identity(config), space, points) as study:
        assert len(study.ask(2)) == 2
        search(config, tmp_path)
    assert not (tmp_path / "trials.csv").exists()


def test_what_cannot_be_trained_counts_and_has_no_value(cache, tmp_path, monkeypatch):
    def impossible(study, group, halving):
        raise UserError("no memory")

    monkeypatch.setattr(module, "_train_group", impossible)
    search(small(cache, RATE, trials=3, round=2), tmp_path)
    assert not (tmp_path / "trials.csv").exists()


def test_half_made_studies_are_made_again(cache, tmp_path, guessed):
    storage = module.optuna.storages.RDBStorage(
        database(tmp_path), engine_kwargs={"poolclass": NullPool}
    )
    module.optuna.create_study(storage=storage, study_name="mnist-mlp10", direction="maximize")
    search(small(cache, RATE, trials=3), tmp_path)
    assert len(table(tmp_path)) == 3


def test_grids_and_searches_that_do_not_fit(cache, tmp_path):
    space = RATE | {"batch_size": ("choice", 32, 64, 128)}
    with pytest.raises(UserError, match="the smallest grid has 6 points"):
        search(small(cache, space, trials=5, sampler="grid"), tmp_path)
    folds = small(cache, RATE)
    folds.data.folds = 2
    with pytest.raises(UserError, match=r"no data\.folds"):
        search(folds, tmp_path)
    with pytest.raises(UserError, match="did you mean 'relu'"):
        space_of(small(cache, {"model": {"activation": ("choice", "tanh", "rleu", "relu")}}))
    with pytest.raises(UserError, match=r"search\.round must be at least 1"):
        search(small(cache, RATE, round=0), tmp_path)
