"""The training loop: epoch after epoch, with what is saved and printed after each.

To follow a step from here: `train` leads to `epoch.train_epoch`, that to
`core.population.train_steps`, and that to `core.step.train_step`.
"""

import json
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax import files, settings
from digits_jax.console import (
    console,
    display,
    duration,
    percent,
    status,
    time_left,
    warn,
    warn_drawn,
)
from digits_jax.core.step import eval_weights
from digits_jax.data import dataset
from digits_jax.devices import hosts
from digits_jax.devices.mesh import fetch
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import Stopped, UserError, again
from digits_jax.report import artifacts
from digits_jax.training import predictor
from digits_jax.training.checkpoint import FOLDER, PART, Checkpoints
from digits_jax.training.epoch import Clock, train_epoch
from digits_jax.training.finish import finish
from digits_jax.training.resolve import resolve
from digits_jax.training.run import Position, Run, build
from digits_jax.training.workdir import RESULTS, clear, finished, locked

log = logging.getLogger(__name__)


def train(
    config: ConfigDict,
    workdir: str | Path | None = None,
    listen: Callable[[], NoInterrupts] = NoInterrupts,
) -> Path:
    """Trains what `config` describes into `workdir`, from its last checkpoint if it has one.

    Without a `workdir` into runs/NAME, which carries the data's source where that isn't MNIST, as
    in runs/NAME-drawn. listen: makes the context manager that says whether to stop, such as
    `signals.Interrupts`. `config` is not changed. Returns the workdir. Raises UserError if it holds
    a run of another config, cannot be written, or is used by another process; `Stopped` if a signal
    stopped the run and its state is saved.
    """
    clock, auto = Clock(), config.data.source == "auto"
    config, workdir, no_mnist = _find_data_and_folder(config, workdir)
    with display(), hosts.reports(workdir) as folder, locked(folder, again(config.resume)):
        config = resolve(config, workdir)
        is_finished = finished(config, workdir)
        hosts.agree("whether they are finished", bytes([is_finished]))
        if is_finished:
            console.print(f"This run is finished; its result is in {workdir / 'summary.json'}.")
            if auto and config.data.source == "drawn":
                console.print("It is a run on DRAWN digits. For MNIST choose another --workdir.")
            console.print("--config.resume=False starts it over, --mode=eval evaluates it again.")
            return workdir
        with listen() as interrupts:
            run = build(config)
            if not config.resume:
                clear(folder)
            if not (folder / "config.json").exists():  # else once it is known that it can go on
                files.write_json(folder / "config.json", settings.as_dict(config))
            if auto and config.data.source == "drawn":
                warn_drawn(no_mnist)
            _introduce(run, workdir)
            table = EpochTable(run)
            hosts.agree_on(workdir)
            with Checkpoints(workdir) as checkpoints:
                done = _resume(run, checkpoints, clock)
                clear(folder, RESULTS)  # if it was finished before, after fewer epochs
                files.write_json(folder / "config.json", settings.as_dict(config))
                rows = artifacts.rewind(folder / "metrics.jsonl", done)
                with artifacts.EventWriter(folder, rows) as events:
                    for number in range(done + 1, config.epochs + 1):
                        if all(np.all(fetch(state.best.stopped)) for state in run.states):
                            break
                        try:
                            rows = train_epoch(run, number, clock, interrupts)
                        except Stopped:
                            clock.lap()
                            checkpoints.wait()
                            _save_within_epoch(run, workdir, number, clock)
                            text = f"stopped in epoch {number}; {again(config.resume)}"
                            raise Stopped(text) from None
                        _warn_of_diverged(run, workdir, number)
                        files.append_rows(folder / "metrics.jsonl", rows)
                        events.append(rows)
                        clock.lap()
                        if config.keep_epochs:
                            _keep_weights(run, folder, number)
                        status("saving", brief=True)
                        checkpoints.save(number, run.checkpoint(), _meta(run, clock))
                        if (workdir / PART).exists():  # it is part of this epoch
                            checkpoints.wait()
                            shutil.rmtree(workdir / PART, ignore_errors=True)
                        if rows:
                            table.print(number, rows, clock.epochs)
            if interrupts.asked():
                raise Stopped(f"stopped after the last epoch; {again(config.resume)}")
        finish(run, folder, clock)
    return workdir


def _find_data_and_folder(
    config: ConfigDict, workdir: str | Path | None
) -> tuple[ConfigDict, Path, str]:
    """-> (the checked config, its folder, why MNIST could not be had)."""
    settings.check(config)
    hosts.agree("their configs", settings.fingerprint(config))
    folder, no_mnist = Path(workdir or settings.folder_of(config)), ""
    resumed = config.resume and settings.read(folder)  # with the digits that it began with
    if config.data.source == "auto" and not resumed:
        config = config.copy_and_resolve_references()
        config.data, no_mnist = dataset.find(config.data)
        folder = Path(workdir or settings.folder_of(config))
    for field in ("distill.teacher", "prune.run"):
        source = settings.flatten(config)[field]
        if source and Path(source).resolve() == folder.resolve():
            raise UserError(
                f"config.{field}={source} is the --workdir, and a run cannot learn from itself; "
                "choose another --workdir"
            )
    return config, folder, no_mnist


def _meta(run: Run, clock: Clock) -> dict[str, Any]:
    diverged = {str(member): facts for member, facts in run.diverged.items()}
    return {"seconds": dict(clock.seconds), "diverged": diverged, "inputs": run.inputs}


def _resume(run: Run, checkpoints: Checkpoints, clock: Clock) -> int:
    """Goes on from the last checkpoint, or from the step in which a signal stopped the next epoch.

    -> how many epochs are done.
    """
    restored, done, where = checkpoints.restore(run.checkpoint()), 0, ""
    if restored:
        done, where = restored[0], f"after epoch {restored[0]}"
    if (checkpoints.workdir / PART).exists():
        try:
            with Checkpoints(checkpoints.workdir, PART) as parts:
                part = parts.restore(run.checkpoint())
        except UserError as error:  # then the epoch is done again
            part = None
            log.warning("%s", error)
        if part and part[2]["epoch"] == done + 1 <= run.config.epochs:
            restored, where = part, f"in epoch {done + 1}"
    if restored:
        _, saved, meta = restored
        for field, digest in meta["inputs"].items():
            if digest != run.inputs[field]:
                raise UserError(
                    f"the weights in config.{field}={settings.flatten(run.config)[field]} are not "
                    f"those that the run in {checkpoints.workdir} began with; choose another "
                    "--workdir, or --config.resume=False to start this run over with the new ones"
                )
        run.restore(saved)
        run.diverged = {int(member): facts for member, facts in meta["diverged"].items()}
        if "position" in meta:
            run.position = Position.of(meta["position"])
        clock.add(meta["seconds"])
        console.print(f"Resumed {where}.")
    hosts.agree("how far they are", json.dumps([done, run.position.as_dict()]).encode())
    return done


def _save_within_epoch(run: Run, workdir: Path, number: int, clock: Clock) -> None:
    """Saves an unfinished epoch; its earlier part is deleted once this one is on disk."""
    with Checkpoints(workdir, PART) as parts:
        meta = _meta(run, clock) | {"epoch": number, "position": run.position.as_dict()}
        parts.save(max(parts.epochs(), default=0) + 1, run.checkpoint(), files.plain(meta))


def _warn_of_diverged(run: Run, workdir: Path, number: int) -> None:
    """Warns of the members that diverged in this epoch; UserError if none is left."""
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


def _keep_weights(run: Run, workdir: Path, number: int) -> None:
    """Writes the weights with which this epoch was evaluated."""
    size, weights = run.config.population.size, run.gathered(eval_weights)
    if hosts.leads():
        path, config = predictor.epoch_file(workdir, number), settings.as_dict(run.config)
        epochs, temperature = [number] * size, np.ones(size + 1)
        predictor.write(path, config, weights, run.data.normalizer, epochs, temperature)


def _introduce(run: Run, workdir: Path) -> None:
    config, data = run.config, run.data
    validation = data.validation.size if data.validation else 0
    size, classes = config.population.size, len(config.data.classes)
    source = f"{classes} classes of {data.source}" if classes else f"{data.source} digits"
    examples = "pairs" if data.recipe.digits == 2 else "examples"
    if config.bfloat16 and jax.default_backend() == "cpu":
        warn("config.bfloat16=True is slower than float32 on CPU")
    console.print(
        Text(settings.title_of(config), "bold")
        + f": {config.model.name}, {run.parameters:,} parameters"
        + (f", {size} members" if size > 1 else "")
        + (f" in slices of {len(run.ids[0])}" if 1 < len(run.ids[0]) < size else "")
        + f"; {source}, {data.train.size:,} training and {validation:,} "
        f"validation {examples}; {run.layout}; into {workdir}"
    )
    if len(run.ids[0]) % run.layout.members:
        console.print(
            f"Devices do the same work: {run.layout.mesh.size} for slices of {len(run.ids[0])}. "
            "--config.mesh.data=N has N of them share each batch."
        )


class EpochTable:
    """A line for each epoch, below a header; on narrow terminals with fewer columns."""

    # {column: its width}, and those that go first where there is no room
    WIDTHS: ClassVar = {
        "epoch": 7, "loss": 6, "as trained": 10, "validation": 10, "best": 8, "images/s": 9,
        "time": 6, "left": 9,
    }  # fmt: skip
    EXTRA = ("images/s", "loss", "best", "time", "left")

    def __init__(self, run: Run):
        self._run, self._begun = run, False
        self._left = "at most" if run.config.early_stopping.patience else "left"

    def print(self, number: int, rows: list[dict[str, Any]], seconds: Sequence[float]) -> None:
        """The means over the members' `rows` of epoch `number`; seconds: of the epochs so far."""
        run = self._run

        def mean(name: str) -> float:
            return sum(row[name] for row in rows) / len(rows)

        took = sum(row["seconds"] for row in rows)
        left = time_left(seconds, run.config.epochs - number)
        cells = {
            "epoch": f"{number}/{run.config.epochs}",
            "loss": f"{mean('loss'):.4f}",
            "as trained": percent(mean("accuracy")),
            "images/s": f"{len(rows) * run.images_per_epoch / max(took, 1e-3):,.0f}",
            "time": duration(took),
            "left": duration(left) if left else "",
        }
        if "validation_accuracy" in rows[0]:
            best = np.mean([score for score in run.scores() if np.isfinite(score)])
            cells["validation"] = percent(mean("validation_accuracy"))
            cells["best"] = percent(best)
        shown = self.columns(cells, console.width)
        if not self._begun:
            self._begun = True
            console.print(Text(self._legend("validation" in cells)), soft_wrap=False)
            heads = [self._left if name == "left" else name for name in shown]
            self._line(dict(zip(shown, heads, strict=True)), "bold")
        self._line({name: cells[name] for name in shown})

    @classmethod
    def columns(cls, cells: Collection[str], width: int) -> list[str]:
        """The names of the columns that fit."""
        shown = [name for name in cls.WIDTHS if name in cells]
        for extra in cls.EXTRA:
            if extra in shown and sum(cls.WIDTHS[name] + 1 for name in shown) > width:
                shown.remove(extra)
        return shown

    def _line(self, cells: dict[str, str], style: str = "") -> None:
        text = " ".join(f"{cell:>{self.WIDTHS[name]}}" for name, cell in cells.items())
        console.print(Text(text, style))

    def _legend(self, validated: bool) -> str:
        """What the accuracies are."""
        config = self._run.config
        changed = any(x for name, x in config.augment.items() if name != "per_digit")
        noise = [*["dropout"] * (config.model.dropout > 0), *["augmentation"] * changed]
        harder = f", with {' and '.join(noise)}" if noise else ""
        others = "; validation is of digits not trained on" if validated else ""
        return f"Accuracy as trained is of the epoch's own steps{harder}{others}."
