"""Modes that look at a run: what they write, where, and what becomes of it beside other writers."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import filelock
import pytest
from conftest import config_of, shrink

from digits_jax.analysis import evaluate, more_pairs, robustness, runs
from digits_jax.analysis.best_test_epoch import best_test_epoch
from digits_jax.analysis.compare import compare_runs
from digits_jax.analysis.explain import explain
from digits_jax.data import dataset
from digits_jax.errors import UserError
from digits_jax.export import export
from digits_jax.export.demo import site
from digits_jax.training.predictor import Predictor
from digits_jax.training.train import train

pytestmark = pytest.mark.usefixtures("unpictured")

ROOT = Path(__file__).parent.parent
NAME, CONFIG = "two_head-mlp", "--config=configs/two_head.py:mlp"


@pytest.fixture(scope="module")
def config(cache):
    config = shrink(config_of("two_head:mlp"), cache)
    config.model.hidden = (8,)
    config.keep_epochs = True
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run that is finished; tests copy it."""
    workdir = tmp_path_factory.mktemp("finished") / NAME
    train(config, workdir)
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / NAME))


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def snapshot(folder):
    """{path: (mtime, bytes)} of a folder and all in it."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in (folder, *folder.rglob("*"))
    }


def changed(before, after):
    """The files that are new, gone or other."""
    paths = before.keys() | after.keys()
    return {
        path
        for path in paths
        if before.get(path) != after.get(path) and (before.get(path) or after[path])[1] is not None
    }


def test_out_is_no_folder_of_another_run(config, run, tmp_path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    before = snapshot(other)
    for look in (
        lambda: evaluate.evaluate(config, run, None, "auto", other),
        lambda: export.export(config, run, other),
        lambda: explain(config, run, 0, other),
    ):
        with pytest.raises(UserError, match="holds another run; choose another folder"):
            look()
    assert snapshot(other) == before


# ---- Others that write


@pytest.fixture
def quick(monkeypatch):
    """Few damages and draws."""
    kinds = robustness.CORRUPTIONS.items()
    kinds = {name: kind._replace(levels=kind.levels[:1]) for name, kind in kinds}
    monkeypatch.setattr(robustness, "CORRUPTIONS", kinds)
    monkeypatch.setattr(more_pairs, "DRAWS", 2)


def during(monkeypatch, act):
    """`act` happens while robustness is at work, once."""
    left, corrupt = [act], robustness.corrupt

    def also(*arguments):
        if left:
            left.pop()()
        return corrupt(*arguments)

    monkeypatch.setattr(robustness, "corrupt", also)


@pytest.mark.usefixtures("quick")
def test_what_other_modes_add_meanwhile_stays(config, run, monkeypatch):
    before = summary_of(run)

    def others():
        more_pairs.more_pairs(config, run)
        best_test_epoch(config, run)

    during(monkeypatch, others)
    robustness.robustness(config, str(run))
    after = summary_of(run)
    assert list(after)[-3:] == ["pairs", "best_test_epoch", "robustness"]
    assert before == {key: after[key] for key in before}


def test_additions_wait_for_each_other(run, monkeypatch):
    """Eight at once, each slow to write what it has read."""
    write, before = runs.files.write_json, summary_of(run)

    def slowly(*arguments):
        time.sleep(0.02)
        write(*arguments)

    monkeypatch.setattr(runs.files, "write_json", slowly)
    additions = [runs.Addition(run, None, "") for _ in range(8)]
    threads = [
        threading.Thread(target=addition.write, args=(f"found {i}", {"mean": i}))
        for i, addition in enumerate(additions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert summary_of(run) == before | {f"found {i}": {"mean": i} for i in range(8)}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("other", ["config", "members", "date", "seconds", "gone"])
def test_nothing_is_added_to_a_run_that_was_trained_again(config, run, monkeypatch, other):
    summary = summary_of(run)

    def again():
        if other == "gone":  # training has begun
            (run / "summary.json").unlink()
            return
        summary[other] = {"of": "another run"}
        (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")

    during(monkeypatch, again)
    with pytest.raises(UserError, match=r"was trained again meanwhile; .* is not added") as said:
        robustness.robustness(config, run)
    assert len(str(said.value).splitlines()) == 1
    assert not (run / "robustness.png").exists()
    assert other == "gone" or summary_of(run) == summary


def test_nothing_is_added_while_a_run_is_trained(run, monkeypatch):
    addition, before = runs.Addition(run, None, ""), snapshot(run)
    monkeypatch.setattr(runs, "_PATIENCE", 0)
    with (
        filelock.FileLock(run / ".lock"),
        pytest.raises(UserError, match="another process is training in"),
    ):
        addition.write("found", {})
    assert not changed(before, snapshot(run))


def test_a_lock_that_cannot_be_had_is_none(run, monkeypatch):
    """Of another user, say, or on a disk that knows no locks."""

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    runs.Addition(run, None, "").write("found", {"mean": 1})
    assert summary_of(run)["found"] == {"mean": 1}


# ---- Reading never writes


def looking(config, workdir, out=None):
    """What each mode does, and the files that it writes."""
    return {
        "eval": (
            lambda: evaluate.evaluate(config, workdir, None, "auto", out),
            {"predictions.csv"},
        ),
        "explain": (lambda: explain(config, workdir, 0, out), {"filters.png", "attribution.png"}),
        "epochs": (lambda: best_test_epoch(config, workdir, out), {"summary.json"}),
        "pairs": (lambda: more_pairs.more_pairs(config, workdir, out), {"summary.json"}),
        "robustness": (
            lambda: robustness.robustness(config, workdir, out),
            {"summary.json", "robustness.png"},
        ),
        "export": (
            lambda: export.export(config, workdir, out),
            {f"export/{name}" for name in (*KINDS, "model.npz")},
        ),
    }


KINDS = (export.WHOLE, export.SMALL, export.HLO, export.CARD)


def test_a_run_without_weights_stays_as_it_is(config, run):
    """As a clone of the repository has it."""
    for name in ("checkpoints", "epochs", "tensorboard"):
        shutil.rmtree(run / name)
    for name in ("model.npz", ".lock"):
        (run / name).unlink()
    before = snapshot(run)
    for mode, (look, _) in looking(config, run).items():
        with pytest.raises(UserError, match="without weights"):
            look()
        assert snapshot(run) == before, mode
    with pytest.raises(UserError, match="without weights"):
        export.demo(config, run, 0)
    with pytest.raises(UserError, match="without weights"):
        Predictor(str(run))
    assert "share" not in compare_runs(run, run)
    assert snapshot(run) == before


@pytest.mark.usefixtures("quick")
def test_modes_write_what_they_are_for_and_nothing_else(config, run, monkeypatch):
    def missing(_):
        raise UserError("no npm here")

    monkeypatch.setattr(site, "runtime", missing)
    compare_runs(run, run)
    for mode, (look, files) in looking(config, run).items():
        before = snapshot(run)
        look()
        assert changed(before, snapshot(run)) == files, mode


def test_a_checkpoint_is_read_and_left_alone(config, run):
    for name in ("model.npz", "summary.json"):
        (run / name).unlink()
    before = snapshot(run)
    evaluate.evaluate(config, run, None, "auto")
    assert changed(before, snapshot(run)) == {"predictions.csv"}
    before = snapshot(run / "checkpoints")
    Predictor(run)
    assert snapshot(run / "checkpoints") == before


@pytest.mark.parametrize("name", ["config.json", "model.npz"])
def test_what_may_not_be_read_is_not_called_damaged(run, monkeypatch, name):
    opened = io.open

    def refused(path, *how, **more):
        if str(path) == str(run / name):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(io, "open", refused)  # what pathlib calls
    with pytest.raises(UserError, match=f"{name} cannot be read: Permission denied$"):
        Predictor(run)


# ---- Another folder to write into


@pytest.mark.usefixtures("quick")
def test_summaries_elsewhere(config, run, tmp_path):
    """Begun with what the run's says, added to one mode after the other; never of another run."""
    before, out = snapshot(run), tmp_path / "new" / "folder"
    more_pairs.more_pairs(config, run, str(out))
    best_test_epoch(config, run, out)
    there = summary_of(out)
    assert {**summary_of(run), "pairs": 0, "best_test_epoch": 0} == {
        **there,
        "pairs": 0,
        "best_test_epoch": 0,
    }
    assert there["pairs"]["draws"] == 2
    assert snapshot(run) == before
    for text in ('{"test": 1}', "{"):
        (out / "summary.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"is not of the run in .*; choose another --out"):
            more_pairs.more_pairs(config, run, out)
        assert (out / "summary.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("out", [None, "out"])
def test_what_cannot_be_written_is_said_before_the_work(config, run, tmp_path, monkeypatch, out):
    def sealed(dir):
        raise PermissionError(13, "Permission denied", f"{dir}/x1y2z3")

    def worked(*_):
        raise AssertionError

    monkeypatch.setattr(runs.tempfile, "TemporaryFile", sealed)
    monkeypatch.setattr(dataset, "load", worked)
    folder = tmp_path / out if out else run
    way = "choose another --out" if out else "--out=DIR"
    for look, _ in looking(config, run, folder if out else None).values():
        with pytest.raises(UserError) as said:
            look()
        assert str(said.value).startswith(f"{folder} cannot be written (Permission denied); {way}")


def test_a_file_in_the_way_of_the_folder(config, run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written .*; choose another --out"):
        evaluate.evaluate(config, run, None, "auto", tmp_path / "file")


def test_brackets_in_a_folder_are_no_markup(config, run, capsys):
    strange = run.parent / "lr[" / "0.1]"
    strange.parent.mkdir()
    run.rename(strange)
    evaluate.evaluate(config, strange, None, "auto")
    explain(config, strange, 0)
    said = capsys.readouterr().out
    assert said.count(str(strange)) == 2


# ---- A run that may only be read, by the command

# Root may write anywhere, unless it gives that up for good: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH.
SEALED = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# Many commands in one process, each with flags of its own; the page runs with what is at hand.
COMMANDS = f"""
import contextlib, importlib, io, json, os, sys
import launch
from absl import flags
from digits_jax.export.demo import site
site.FILES = {{"x.mjs": {hashlib.sha256(b"module").hexdigest()!r}}}
os._exit = sys.exit
ours = [flag.name for flag in flags.FLAGS.flags_by_module_dict()["digits_jax.cli"]]
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["launch.py", *arguments]
    for name in [*ours, *(name for name in flags.FLAGS if name.startswith("config."))]:
        delattr(flags.FLAGS, name)
    importlib.reload(launch.cli)
    if "--port=0" in arguments:
        launch.cli.main()
    said = io.StringIO()
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(said):
        try:
            code = launch.cli.main() or 0
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


def started(*arguments):
    command = [sys.executable, "-c", SEALED, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def launched(*arguments):
    with started("launch.py", *arguments) as process:
        _, said = process.communicate(timeout=300)
    return process.returncode, said


def commands(lists):
    with started("-c", COMMANDS, json.dumps(lists)) as process:
        answers, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return [json.loads(line) for line in answers.splitlines()]


@pytest.fixture(scope="module")
def sealed(finished, cache, tmp_path_factory):
    """A run that nobody may write into, in a folder of which that is true, too."""
    if os.name != "posix":
        pytest.skip("permissions are of POSIX")
    folder = tmp_path_factory.mktemp("sealed")
    run = Path(shutil.copytree(finished, folder / NAME))
    (cache / site.RUNTIME).mkdir(exist_ok=True)
    (cache / site.RUNTIME / "x.mjs").write_text("module")
    places = [folder, *folder.rglob("*")]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(folder)
    yield run
    assert snapshot(folder) == before
    for path in places:
        path.chmod(0o755 if path.is_dir() else 0o644)


def one_line(answer, *parts):
    code, said = answer
    assert code == 1, said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1, said
    for part in parts:
        assert part in said
    return said


def test_a_run_that_may_only_be_read(sealed, cache):
    """Every mode that would write says so in one line; those that need not write do their work."""
    ours = [CONFIG, f"--workdir={sealed}", f"--config.data.cache_dir={cache}"]
    small = ["--config.data.source=drawn", "--config.data.drawn_train=200"]
    small += ["--config.data.drawn_test=50", "--config.data.train=96", "--config.data.test=40"]
    modes = ("best-test-epoch", "more-pairs", "robustness", "explain", "export", "demo")
    above, cached = sealed.parent, ours[-1]
    search = ["--config=configs/mnist100.py", "--mode=search", cached, *small]
    answers = commands(
        [
            *([*ours, f"--mode={mode}"] for mode in modes),
            [*ours, "--mode=describe"],
            ["--mode=compare", f"--runs={sealed},{sealed}"],
            ["--mode=compare", f"--runs={sealed},{sealed}", f"--workdir={above}"],
            [CONFIG, "--mode=compare", "--variants=mlp", f"--workdir={above}", cached, *small],
            [*search, f"--workdir={above / 'search'}"],
            [*search, f"--workdir={above}"],
            ours,
        ]
    )
    refused, (describe, runs, written, *trains) = answers[: len(modes)], answers[len(modes) :]
    for answer in (*refused, launched(*ours, "--mode=eval")):
        said = one_line(answer, str(sealed), "Permission denied", "--out=DIR")
        assert "goes on" not in said
    assert describe[0] == runs[0] == 0
    one_line(written, str(above), "Permission denied; choose another --workdir")
    for answer in trains:
        one_line(answer, str(above))


def test_a_run_that_may_only_be_read_is_looked_at_elsewhere(sealed, cache, tmp_path):
    ours = [CONFIG, f"--workdir={sealed}", f"--config.data.cache_dir={cache}"]
    out = tmp_path / "out"
    modes = ("best-test-epoch", "more-pairs", "robustness", "explain", "export")
    for code, said in commands([[*ours, f"--mode={mode}", f"--out={out}"] for mode in modes]):
        assert code == 0, said
    code, said = launched(*ours, "--mode=eval", f"--out={out}")
    assert code == 0, said
    names = ("predictions.csv", "summary.json", "robustness.png", "filters.png", "attribution.png")
    assert all((out / name).is_file() for name in names)
    assert all((out / "export" / name).is_file() for name in KINDS)
    there, before = summary_of(out), summary_of(sealed)
    assert there.keys() - before.keys() == {"best_test_epoch", "pairs", "robustness"}
    assert {key: there[key] for key in before} == before


def test_the_page_of_a_run_that_may_only_be_read(sealed, cache, tmp_path):
    demo = [CONFIG, f"--workdir={sealed}", f"--config.data.cache_dir={cache}", "--mode=demo"]
    demo += ["--port=0", f"--out={tmp_path / 'out'}"]
    with started("-c", COMMANDS, json.dumps([demo])) as process:
        lines = iter(process.stdout.readline, "")
        address = next((line.split()[0] for line in lines if line.startswith("http")), None)
        assert address, process.stderr.read()
        with urllib.request.urlopen(f"{address}facts.json", timeout=30) as answer:
            assert json.load(answer)["model"] == export.WHOLE
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0].strip() == "ended"
        assert process.returncode == 0
    assert (tmp_path / "out" / "export" / "demo" / "page.js").is_file()
