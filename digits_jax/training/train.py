"""The one loop. Only here are programs jitted and files written while a run goes on."""

import datetime
import json
import logging
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax import files, settings
from digits_jax.console import EpochBar, console, percent, warn, warn_drawn
from digits_jax.core import optim
from digits_jax.core.metrics import means
from digits_jax.core.step import current
from digits_jax.data import batches
from digits_jax.devices import backend, hosts
from digits_jax.devices.mesh import fetch
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import Stopped, UserError
from digits_jax.report import artifacts, figures
from digits_jax.training import predictor, prune
from digits_jax.training.checkpoint import FOLDER, PART, Checkpoints
from digits_jax.training.run import Position, Run, build
from digits_jax.types import Metrics

log = logging.getLogger(__name__)
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_SPLITS = ("train", "validation", "test")
_PASSWORD = r"(://[^:/@\s]*:)[^@\s]*@"  # in the URL of a search's storage
_RESULTS = (  # what a finished run has in its workdir, and what other modes make of it
    *("summary.json", predictor.FILE, "per_class.csv", "predictions.csv", "pruning.md", "export"),
    *("curves.png", "confusion.png", "errors.png", "examples.png", "augmented.png"),
    *("calibration.png", "robustness.png", "pruning.png", "filters.png", "feature_maps.png"),
    "attribution.png",
)
# All that is a run's; what makes it one goes last when they are deleted.
_OWN_FILES = (
    *(FOLDER, PART, "tensorboard", "metrics.jsonl", predictor.EPOCHS, *_RESULTS, "config.json"),
)


class Clock:
    """Seconds by what they were spent on, carried over a resume; compiling is timed apart."""

    def __init__(self) -> None:
        self.seconds = {"compile": 0.0, "train": 0.0, "total": 0.0}
        self._last = time.perf_counter()

    def add(self, seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            self.seconds[name] += value

    def lap(self, name: str = "") -> float:
        """Adds the time since the last lap to the total and to `name`, and returns it."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        self.seconds["total"] += took
        if name:
            self.seconds[name] += took
        return took


def train(
    config: ConfigDict,
    workdir: str | Path | None = None,
    listen: Callable[[], NoInterrupts] = NoInterrupts,
) -> None:
    """Trains what `config` describes into `workdir`, from its last checkpoint if it has one.

    Without a `workdir` into runs/NAME, or runs/NAME-drawn where `data.source` is 'auto' and MNIST
    cannot be had. listen: makes the context manager that says whether to stop, such as
    `signals.Interrupts`. `config` stays as it is. Raises UserError if the workdir holds a run of
    another config, cannot be written, or is another process's, and `Stopped` where it was asked to
    stop and all is saved.
    """
    clock = Clock()
    config = config.copy_and_resolve_references()
    settings.check(config)
    asked, reason = config.data.source, ""
    folder = Path("runs") / config.name if workdir is None else Path(workdir)
    if workdir is None and not (config.resume and settings.read(folder)):
        folder, reason = folder_for(config, folder)  # else it goes on with its own digits
    workdir = folder
    for field in ("distill.teacher", "prune.run"):
        source = settings.flatten(config)[field]
        if source and Path(source).resolve() == workdir.resolve():
            raise UserError(
                f"config.{field}={source} is the --workdir, and a run cannot learn from itself; "
                "choose another --workdir"
            )
    hosts.agree("their configs", settings.fingerprint(config))
    with hosts.reports(workdir) as folder, _ours(folder, _again(config)):
        finished = _prepare(config, workdir)
        hosts.agree("whether they are finished", bytes([finished]))
        if finished:
            _say_finished(config, workdir, asked)
            return
        with listen() as interrupts:
            run = build(config)
            if not config.resume:
                _clear(folder)
            if not (folder / "config.json").exists():  # else once it is known that it can go on
                files.write_json(folder / "config.json", settings.as_dict(run.config))
            _introduce(run, workdir, asked, reason or run.data.reason)
            hosts.agree_on(workdir)
            with Checkpoints(workdir) as checkpoints:
                _train(run, folder, checkpoints, clock, interrupts)
        _finish(run, folder, clock)


def folder_for(config: ConfigDict, own: Path) -> tuple[Path, str]:
    """`own`, or where `data.source` is 'auto' and finds no MNIST a folder apart; and why, if so.

    Writes into `config` which digits were found.
    """
    if config.data.source != "auto":
        return own, ""
    config.data.source, reason = batches.find(config.data)
    return (settings.apart(own) if config.data.source == "drawn" else own), reason


def _say_finished(config: ConfigDict, workdir: Path, asked: str) -> None:
    console.print(f"This run is finished; its result stands in {workdir / 'summary.json'}.")
    if asked == "auto" and config.data.source == "drawn":
        console.print("It is a run on DRAWN digits. For MNIST choose another --workdir.")
    console.print("--config.resume=False starts it over, --mode=eval evaluates it again.")


@contextmanager
def _ours(workdir: Path, again: str) -> Iterator[None]:
    """Makes the folder and keeps other processes from training in it, as long as this one lives."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been quicker
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written: {error.strerror}; choose another folder"
        ) from None
    lock = filelock.FileLock(workdir / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"another process is training in {workdir}; wait for it, or choose another --workdir"
        ) from None
    try:
        yield
    except OSError as error:  # a full disk, a folder taken away
        raise UserError(
            f"{error.filename or workdir}: {error.strerror or error}; {again} from the last epoch"
        ) from None
    finally:
        lock.release()


def _train(
    run: Run, workdir: Path, checkpoints: Checkpoints, clock: Clock, interrupts: NoInterrupts
) -> None:
    """The epochs that are left."""
    config, part = run.config, checkpoints.workdir / PART
    done, superseded = _resume(run, checkpoints, clock), part.exists()
    _clear(workdir, _RESULTS)  # of when it was finished, perhaps after fewer epochs
    files.write_json(workdir / "config.json", settings.as_dict(config))
    kept = artifacts.rewind(workdir / "metrics.jsonl", done)
    with artifacts.EventWriter(workdir, kept) as events:
        for number in range(done + 1, config.epochs + 1):
            if all(np.all(fetch(state.best.stopped)) for state in run.states):
                break
            try:
                rows = epoch(run, number, clock, interrupts)
            except Stopped:
                clock.lap()
                checkpoints.wait()
                _save_part(run, checkpoints.workdir, number, clock)
                raise Stopped(f"stopped in epoch {number}; {_again(config)}") from None
            _tell_diverged(run, workdir, number)
            files.append_rows(workdir / "metrics.jsonl", rows)
            events.append(rows)
            clock.lap()
            if config.keep_epochs:
                _keep(run, workdir, number)
            checkpoints.save(number, run.saved(), _meta(run, clock))
            if superseded:  # by this epoch, once it is on disk
                checkpoints.wait()
                shutil.rmtree(part, ignore_errors=True)
                superseded = False
            if rows:
                _epoch_line(run, number, rows)
    if interrupts.asked():
        raise Stopped(f"stopped after the last epoch; {_again(config)}")


def _again(config: ConfigDict) -> str:
    command = "the same command" if config.resume else "the command without --config.resume=False"
    return f"{command} goes on"


def _meta(run: Run, clock: Clock) -> dict[str, Any]:
    diverged = {str(member): facts for member, facts in run.diverged.items()}
    return {"seconds": dict(clock.seconds), "diverged": diverged, "inputs": run.inputs}


def _resume(run: Run, checkpoints: Checkpoints, clock: Clock) -> int:
    """Goes on from the last checkpoint, or from where a signal stopped the epoch after it.

    -> the epochs that are done.
    """
    restored, done, where = checkpoints.restore(run.saved()), 0, ""
    if restored:
        done, where = restored[0], f"after epoch {restored[0]}"
    if (checkpoints.workdir / PART).exists():
        try:
            with Checkpoints(checkpoints.workdir, PART) as parts:
                part = parts.restore(run.saved())
        except UserError as error:  # then the epoch is done again
            part = None
            log.warning("%s", error)
        if part and part[2].get("epoch", part[0]) == done + 1 <= run.config.epochs:
            restored, where = part, f"in epoch {done + 1}"
    if restored:
        _, saved, meta = restored
        for field, digest in meta.get("inputs", run.inputs).items():
            if digest != run.inputs[field]:
                raise UserError(
                    f"the weights in config.{field}={settings.flatten(run.config)[field]} are not "
                    f"those that the run in {checkpoints.workdir} began with; choose another "
                    "--workdir, or --config.resume=False to start this run over with the new ones"
                )
        run.take(saved)
        run.diverged = {int(member): facts for member, facts in meta.get("diverged", {}).items()}
        if "position" in meta:
            run.position = Position.of(meta["position"])
        clock.add(meta["seconds"])
        console.print(f"Resumed {where}.")
    hosts.agree("how far they are", json.dumps([done, run.position.as_dict()]).encode())
    return done


def _save_part(run: Run, workdir: Path, number: int, clock: Clock) -> None:
    """Saves an unfinished epoch, and waits until it is written; an earlier part stays till then."""
    with Checkpoints(workdir, PART) as parts:
        meta = _meta(run, clock) | {"epoch": number, "position": run.position.as_dict()}
        parts.save(max(parts.epochs(), default=0) + 1, run.saved(), files.plain(meta))


def _tell_diverged(run: Run, workdir: Path, number: int) -> None:
    """Says which members lost their way in this epoch; UserError if nobody is left."""
    new = {m: facts for m, facts in run.diverged.items() if facts["epoch"] == number}
    for member, facts in new.items():
        text = (
            f"the loss of member {member} stopped being a number in step {facts['step']} (epoch "
            f"{number}, learning rate {facts['learning_rate']:.3g})"
        )
        if len(run.diverged) == run.config.population.size:
            kept = f"epoch {number - 1} is the last good checkpoint in {workdir / FOLDER}; "
            raise UserError(
                f"{text}; {kept if number > 1 else ''}a lower --config.optimizer.learning_rate "
                "may help"
            )
        warn(f"{text}. It keeps its best weights until then; the others go on.")


def _keep(run: Run, workdir: Path, number: int) -> None:
    """Writes the weights that this epoch was evaluated with."""
    size = run.config.population.size
    weights = fetch([*map(current, run.states)])
    if not hosts.leads():
        return
    predictor.write(
        predictor.epoch_file(workdir, number),
        settings.as_dict(run.config),
        jax.tree.map(lambda *x: np.concatenate(x), *weights),
        run.data.normalizer,
        [number] * size,
        np.ones(size + 1),
    )


def _prepare(config: ConfigDict, workdir: Path) -> bool:
    """Makes or takes over the workdir; True if it holds this very run, finished.

    A run goes on to another number of epochs where that changes none of those that are done.
    """
    recorded = settings.read(workdir) if config.resume else None
    if recorded is None:
        return False
    for field in ("source", "test_source"):
        if config.data[field] == "auto":
            config.data[field] = recorded["data"].get(field) or "auto"
    config.population.slice = config.population.slice or recorded["population"]["slice"]
    changes = settings.changes(recorded, config)
    saved = [int(path.name) for path in workdir.glob(f"{FOLDER}/*") if path.name.isdecimal()]
    kept = (workdir / predictor.FILE).exists()
    more = [field for field, *_ in changes] == ["epochs"]  # or fewer, but not than are done
    schedule = config.optimizer.schedule
    if more and schedule in optim.OVER_ALL_EPOCHS:
        raise UserError(
            f"{workdir} holds a run with epochs={recorded['epochs']}, and config.optimizer.schedule"
            f"={schedule} spreads over all of them: with epochs={config.epochs} it is another run "
            "from its first step on; choose another --workdir, or --config.resume=False to delete "
            "that run and start this one"
        )
    if more and kept and not saved:
        raise UserError(
            f"{workdir} holds a run with epochs={recorded['epochs']} but no checkpoint to go on "
            "from; choose another --workdir, or --config.resume=False to start over"
        )
    if changes and not (more and config.epochs >= max(saved, default=0)):
        raise UserError(
            f"{workdir} holds a run of another config "
            f"({'; '.join(settings.differences(recorded, config))}); choose another "
            "--workdir, or --config.resume=False to delete that run and start this one"
        )
    try:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    whole = summary.get("config", {}).get("epochs", config.epochs) == config.epochs
    return kept and whole and not more and ("test" in summary or not config.report_test)


def _clear(workdir: Path, names: Iterable[str] = _OWN_FILES) -> None:
    """Deletes the files of an earlier run, and no others."""
    for name in names:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _introduce(run: Run, workdir: Path, asked: str, reason: str) -> None:
    config, data = run.config, run.data
    if asked == "auto" and data.source == "drawn":
        warn_drawn(reason)
    validation = data.validation.size if data.validation else 0
    size = config.population.size
    console.print(
        Text(config.name, "bold")
        + f": {config.model.name}, {run.parameters:,} parameters"
        + (f", {size} members" if size > 1 else "")
        + (f" in slices of {len(run.ids[0])}" if 1 < len(run.ids[0]) < size else "")
        + f"; {data.source} digits, {data.train.size:,} training and {validation:,} "
        f"validation examples; {run.layout}; into {workdir}"
    )
    if len(run.ids[0]) % run.layout.members:
        console.print(
            f"Devices do the same work: {run.layout.mesh.size} for slices of {len(run.ids[0])}. "
            "--config.mesh.data=N has N of them share each batch."
        )


def epoch(
    run: Run, number: int, clock: Clock, interrupts: NoInterrupts | None = None
) -> list[dict[str, Any]]:
    """Trains and evaluates every member that has not stopped; -> its rows of metrics.jsonl.

    Goes on from `run.position`. A member whose loss stops being a number gives no row: it is
    stopped and noted in `run.diverged`. Raises `Stopped` soon after `interrupts` are asked to stop,
    and notes in `run.position` how far it came.
    """
    config, done = run.config, run.position
    if not run.ready:
        run.compile()
        clock.lap()
        clock.add({"compile": run.compiling})
        run.ready = True
    running = [i for i, state in enumerate(run.states) if not np.all(state.best.stopped)]
    images = run.steps_per_epoch * config.batch_size * sum(len(run.ids[i]) for i in running)
    with EpochBar(f"epoch {number:>2}/{config.epochs}", images) as bar:
        for i in (i for i in running if i >= done.slice):
            if i > done.slice:
                done = run.position = Position(i, rows=done.rows)
            stopped = np.array(fetch(run.states[i].best.stopped))
            clock.lap()
            trained = _train_slice(run, i, number, clock, bar, interrupts)
            done.seconds += clock.lap("train")
            stopped |= _stop_diverged(run, i, number, trained, stopped)
            scores = _evaluate_slice(run, i, number)
            done.rows += [
                {
                    **_row(run, number, i, m),
                    **means(trained, m),
                    **{
                        f"{split}_{name}": value
                        for split, sums in scores.items()
                        for name, value in means(sums, m).items()
                    },
                    "seconds": round(done.seconds / (~stopped).sum(), 3),
                }
                for m in range(len(run.ids[i]))
                if not stopped[m]
            ]
    run.position = Position()
    return done.rows


def _stop_diverged(
    run: Run, i: int, number: int, trained: Metrics, stopped: np.ndarray
) -> np.ndarray:
    """[S] bool: whose loss or weights are no numbers after this epoch; they are stopped."""
    leaves = jax.tree.leaves(fetch(run.states[i].params))
    sound = [np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]
    lost = ~(np.isfinite(trained.loss) & np.all(sound, axis=0)) & ~stopped
    for m in np.flatnonzero(lost):
        step = min(int(trained.finite[m]) + 1, run.steps_per_epoch)
        step += (number - 1) * run.steps_per_epoch
        rate = float(run.members[i].hyper.learning_rate[m]) * float(run.programs.schedule(step - 1))
        member = run.ids[i][m]
        run.diverged[member] = {"epoch": number, "step": step, "learning_rate": rate}
        run.stop(member)
    return lost


def _row(run: Run, epoch: int, i: int, m: int) -> dict[str, Any]:
    """What a row says of member `m` of slice `i` before any measuring."""
    step, members = epoch * run.steps_per_epoch, run.members[i]
    factor = float(run.programs.schedule(step - 1))
    return {
        "epoch": epoch,
        "member": run.ids[i][m],
        "seed": int(members.seed[m]),
        **({"fold": int(members.fold[m])} if run.config.data.folds else {}),
        "step": step,
        "learning_rate": float(str(members.hyper.learning_rate[m])) * factor,  # 0.002, not 0.00200…
    }


def _train_slice(
    run: Run, i: int, epoch: int, clock: Clock, bar: EpochBar, interrupts: NoInterrupts | None
) -> Metrics:
    """An epoch of slice `i`; the device is waited for a few times a second, to draw the bar."""
    data, members, size = run.data, run.members[i], len(run.ids[i])
    order = run.order(members, epoch, n=data.train.size)
    totals = run.layout.over_members(run.position.totals or run.programs.zeros(size))
    state = run.states[i]
    images = run.config.batch_size * size
    start = shown = run.position.start
    ahead, programs = bar.advance(0), dict[int, Any]()
    while start < run.steps_per_epoch:
        if interrupts and interrupts.asked():
            run.states[i] = jax.block_until_ready(state)
            spent = run.position.seconds + clock.lap("train")
            run.position = Position(i, start, totals, spent, run.position.rows)
            raise Stopped
        steps = min(run.chunk, run.steps_per_epoch - start)
        arguments = state, totals, order, start, data.train, data.normalizer, members, run.teacher
        if steps not in programs:
            programs[steps] = run.program(*arguments, steps=steps)
        state, totals = programs[steps](*arguments)
        start += steps
        if interrupts:
            interrupts.at_risk = True
        if (start - shown) * images > ahead or start == run.steps_per_epoch:
            jax.block_until_ready(totals)
            ahead = bar.advance((start - shown) * images)
            shown = start
    run.states[i] = state
    return fetch(totals)


def _evaluate_slice(run: Run, i: int, epoch: int) -> dict[str, Metrics]:
    """Evaluates slice `i` on validation and on as many training examples; keeps the best weights.

    -> {'train': ..., 'validation': ...}; without validation nothing, and the last weights are kept.
    """
    weights, folds = current(run.states[i]), run.members[i].fold
    if run.data.validation is None:  # the last is the best
        last = np.full(len(folds), epoch, jnp.result_type(float))
        run.states[i] = run.track(run.states[i], last, epoch)
        return {}
    n = run.data.validation.size
    some = run.data.train._replace(rows=run.data.train.rows[..., :n, :])
    scores = {
        "train": run.evaluate(weights, some, folds, answers=False)[0],
        "validation": run.evaluate(weights, run.data.validation, folds, answers=False)[0],
    }
    members = range(len(folds))
    score = np.asarray([means(scores["validation"], m)["accuracy"] for m in members])
    run.states[i] = run.track(run.states[i], score.astype(jnp.result_type(float)), epoch)
    return scores


def _epoch_line(run: Run, epoch: int, rows: list[dict[str, Any]]) -> None:
    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    parts = [f"epoch {epoch:>3}/{run.config.epochs}", f"loss {mean('loss'):.4f}"]
    parts.append(f"accuracy {percent(mean('accuracy'))}")
    if "validation_accuracy" in rows[0]:
        best = np.mean([score for score in run.scores() if np.isfinite(score)])
        parts.append(f"validation {percent(mean('validation_accuracy'))} (best {percent(best)})")
    seconds = sum(row["seconds"] for row in rows)
    images = len(rows) * run.steps_per_epoch * run.config.batch_size
    parts.append(f"{images / max(seconds, 1e-3):,.0f} images/s  {seconds:.0f} s")
    console.print("  ".join(parts))


def _finish(run: Run, workdir: Path, clock: Clock) -> None:
    """Evaluates the chosen weights on every split, the test split once, and writes the report."""
    config, data = run.config, run.data
    rows = artifacts.read_rows(workdir / "metrics.jsonl")
    scores, temperatures = {}, None
    for name, split in (("train", data.train), ("validation", data.validation)):
        if split is not None:
            outputs = run.evaluate_chosen(split, answers=name == "validation")
            scores[name] = [
                means(sums, m) for sums, _ in outputs for m in range(len(sums.examples))
            ]
            if name == "validation":
                folds = np.concatenate([members.fold for members in run.members])
                shared = split.of(folds) if config.data.folds else split
                temperatures = artifacts.fit_temperatures(
                    batches.labels(shared, data.recipe), _joined(outputs)
                )
    tested: tuple[Any, ...] = ()
    if config.report_test:
        images, labels = batches.examples(data.test, data.recipe)
        tested = (labels, _joined(run.evaluate_chosen(data.test)), images, temperatures)
    clock.lap()
    epochs = max((row["epoch"] for row in rows), default=0)
    seen = len(rows) * run.steps_per_epoch * config.batch_size
    epoch_of = np.concatenate([fetch(state.best.epoch) for state in run.states]).tolist()
    facts = {
        "config": settings.as_dict(config),
        "command": "python " + re.sub(_PASSWORD, r"\1***@", shlex.join(sys.argv)),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": jax.default_backend(),
        "mesh": run.layout.mesh.shape | {"processes": jax.process_count()},
        "matmul_precision": backend.matmul_precision(),
        "data": {
            "dataset": config.data.dataset,
            "source": data.source,
            "test_source": data.test_source,
            "drawn_extra": data.drawn_extra,
            **{
                name: split.size if split else 0
                for name, split in zip(
                    _SPLITS, (data.train, data.validation, data.test), strict=True
                )
            },
            "digits": data.digits,
        },
        "model": {"name": config.model.name, "parameters": run.parameters},
        "epochs": epochs,
        "steps": epochs * run.steps_per_epoch,
        "seconds": {name: round(value, 2) for name, value in clock.seconds.items()},
        "images_per_second": round(seen / max(clock.seconds["train"], 1e-9), 1),
        **{
            name: {key: float(np.mean([m[key] for m in members])) for key in members[0]}
            for name, members in scores.items()
        },
        "members": [
            {
                "seed": config.seed + member,
                "best_epoch": epoch_of[member],
                "validation": scores["validation"][member]["accuracy"] if data.validation else None,
                **({"diverged": run.diverged[member]} if member in run.diverged else {}),
            }
            for member in range(config.population.size)
        ],
    }
    _show_examples(run, workdir)
    predictor.write(
        workdir / predictor.FILE,
        facts["config"],
        jax.tree.map(lambda *x: np.concatenate(x), *fetch([*map(run.programs.chosen, run.states)])),
        data.normalizer,
        epoch_of,
        np.ones(len(epoch_of) + 1) if temperatures is None else temperatures,
    )
    if config.prune.run:
        facts["pruning"] = table = _pruned(run)
        console.print(prune.write(workdir, config, table))
    summary = artifacts.write(workdir, facts, rows, *tested)
    if tested and not config.prune.run:
        text = figures.noted(artifacts.headline(summary), artifacts.drawn(data.test_source))
        console.print(f"test {text}", style="bold")
    console.print(f"summary.json, metrics.jsonl and the pictures stand in {workdir}")


def _pruned(run: Run) -> list[artifacts.Row]:
    """What pruning took from each member, and what training on gave back."""
    first = [run.layout.over_members(prune.begin(run.config, ids)) for ids in run.ids]
    chosen = [run.programs.chosen(state) for state in run.states]
    splits = {"validation": run.data.validation}
    if run.config.report_test:
        splits["test"] = run.data.test

    def accuracies(weights: list[Any], split: batches.Split) -> list[float]:
        sums = [
            run.evaluate(part, split, members.fold, answers=False)[0]
            for part, members in zip(weights, run.members, strict=True)
        ]
        return [means(part, m)["accuracy"] for part in sums for m in range(len(part.examples))]

    figures = {
        f"{name}{when}": accuracies(weights, split)
        for name, split in splits.items()
        if split is not None
        for when, weights in (("_before", first), ("", chosen))
    }
    params = jax.tree.map(lambda *x: np.concatenate(x), *fetch([part[0] for part in chosen]))
    return prune.rows(run.config, params, figures)


def _joined(outputs: list[tuple[Metrics, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The log-probabilities of all slices, {head: [P, N, C]}."""
    return jax.tree.map(lambda *x: np.concatenate(x), *(log_p for _, log_p in outputs))


def _show_examples(run: Run, workdir: Path) -> None:
    """Pictures of what it trained on: by class, and as the augmentation distorts some of them."""
    data, recipe = run.data, run.data.recipe
    train = data.train.of(0)
    columns = 10 if recipe.shape[1] > recipe.shape[0] else 20
    shown = batches.by_class(train, recipe, columns)
    figures.sheet(batches.examples(shown, recipe)[0], workdir / "examples.png", columns)
    if any(value for name, value in run.config.augment.items() if name != "per_digit"):
        picked = np.asarray(shown.rows)[:: max(len(shown.rows) // 10, 1)][:10]
        rows, key = np.repeat(picked, columns, axis=0), jax.random.key(0)
        draw = jax.jit(lambda split: batches.distorted(split, rows, recipe, key, run.config))
        images = np.rint(255 * np.asarray(draw(train))).astype(np.uint8)
        # The first of its row as it is.
        images[::columns] = batches.examples(train._replace(rows=picked), recipe)[0]
        figures.sheet(images, workdir / "augmented.png", columns)
