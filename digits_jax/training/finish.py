"""The end of a run: its best weights on every split, the summary, the figures."""

import datetime
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from digits_jax import settings
from digits_jax.console import console, status
from digits_jax.core.step import best_weights
from digits_jax.data import batches, dataset
from digits_jax.devices import backend
from digits_jax.devices.mesh import fetch
from digits_jax.report import artifacts, figures, stats
from digits_jax.training import predictor, prune, reader
from digits_jax.training.epoch import Clock
from digits_jax.training.run import Run
from digits_jax.types import Metrics, Split

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_PASSWORD = r"(://[^:/@\s]*:)[^@\s]*@"  # in the URL of a search's storage


def finish(run: Run, workdir: Path, clock: Clock) -> None:
    """Evaluates the best weights on every split, the test split once, and writes the report."""
    status("evaluating the best weights")
    config, data = run.config, run.data
    rows = artifacts.read_rows(workdir / "metrics.jsonl")
    numbers = config.data.dataset == "number"
    scores, temperatures, refusal = {}, None, predictor.UNMEASURED
    for name, split in (("train", data.train), ("validation", data.validation)):
        if split is not None:
            outputs = run.evaluate_best(split, answers=name == "validation")
            scores[name] = [sums.means(m) for sums, _ in outputs for m in range(len(sums.examples))]
            if name == "validation":
                folds = np.concatenate([members.fold for members in run.members])
                shared = split.of(folds) if config.data.folds else split
                labels, log_p = dataset.labels(shared, data.recipe), _joined(outputs)
                temperatures = artifacts.fit_temperatures(labels, log_p)
                if numbers:
                    averaged = artifacts.averaged(log_p)
                    refusal = reader.threshold(labels, averaged, temperatures[-1], data.classes)
    tested: tuple[Any, ...] = ()
    if config.report_test:
        images, labels = dataset.examples(data.test, data.recipe)
        tested = (labels, _joined(run.evaluate_best(data.test)), images, temperatures)
    clock.lap()
    epochs = max((row["epoch"] for row in rows), default=0)
    seen = len(rows) * run.images_per_epoch
    epoch_of = np.concatenate([fetch(state.best.epoch) for state in run.states]).tolist()
    facts = {
        "config": settings.as_dict(config),
        "command": re.sub(_PASSWORD, r"\1***@", _command()),
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
            "train": data.train.size,
            "validation": data.validation.size if data.validation else 0,
            "test": data.test.size,
            "digits": data.digits,
            "classes": data.classes,
            "sha256": data.sha256,
            "held_out": data.held_out,
        },
        "model": {"name": config.model.name, "parameters": run.parameters},
        "epochs": epochs,
        "steps": epochs * run.steps_per_epoch,
        "seconds": {name: round(value, 2) for name, value in clock.seconds.items()},
        "images_per_second": round(seen / max(clock.seconds["train"], 1e-9), 1),
        **{name: stats.means(members) for name, members in scores.items()},
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
    status("drawing the pictures")
    _show_examples(run, workdir)
    calibration = np.ones(len(epoch_of) + 1) if temperatures is None else temperatures
    path, weights = workdir / predictor.FILE, run.gathered(best_weights)
    predictor.write(path, facts["config"], weights, data.normalizer, epoch_of, calibration, refusal)
    if config.prune.run:
        status("evaluating what was pruned")
        facts["pruning"] = table = _pruned(run)
        console.print(prune.write(workdir, config, table))
        status("drawing the pictures", brief=True)
    summary = artifacts.write(workdir, facts, rows, data.classes, *tested)
    status("")
    if tested and not config.prune.run:
        text = figures.noted(artifacts.headline(summary), artifacts.source_note(data.test_source))
        console.print(f"test {text}", style="bold")
    console.print(f"summary.json, metrics.jsonl and the pictures are in {workdir}")


def _command() -> str:
    """What was typed; of a notebook, which has no command, the function that was called."""
    program = Path(sys.argv[0]).name
    if "ipykernel" in program:
        return "digits_jax.train(config, workdir)"
    shown = {"digits-jax": ["digits-jax"], "__main__.py": ["python", "-m", "digits_jax"]}
    return shlex.join([*shown.get(program, ["python", sys.argv[0]]), *sys.argv[1:]])


def _pruned(run: Run) -> list[artifacts.Row]:
    """The accuracy of each member after pruning, and after it was trained on."""
    first = [run.layout.over_members(prune.begin(run.config, ids)) for ids in run.ids]
    kept = [best_weights(state) for state in run.states]
    splits = {"validation": run.data.validation}
    if run.config.report_test:
        splits["test"] = run.data.test

    def accuracies(weights: list[Any], split: Split) -> list[float]:
        sums = [
            run.evaluate(part, members, split, answers=False)[0]
            for part, members in zip(weights, run.members, strict=True)
        ]
        return [part.means(m)["accuracy"] for part in sums for m in range(len(part.examples))]

    figures = {
        f"{name}{when}": accuracies(weights, split)
        for name, split in splits.items()
        if split is not None
        for when, weights in (("_before", first), ("", kept))
    }
    return prune.rows(run.config, run.gathered(best_weights).params, figures)


def _joined(outputs: list[tuple[Metrics, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """The log-probabilities of all slices, {head: [P, N, C]}."""
    return jax.tree.map(lambda *x: np.concatenate(x), *(log_p for _, log_p in outputs))


def _show_examples(run: Run, workdir: Path) -> None:
    """Draws training examples by class, and some of them as the augmentation distorts them."""
    data, recipe = run.data, run.data.recipe
    train = data.train.of(0)
    columns = 10 if recipe.shape[1] > recipe.shape[0] else 20
    shown = dataset.by_class(train, recipe, columns)
    note = artifacts.source_note(data.source)
    title = figures.noted("Training examples by class", note)
    figures.sheet(dataset.examples(shown, recipe)[0], workdir / "examples.png", columns, title)
    if any(value for name, value in run.config.augment.items() if name != "per_digit"):
        picked = np.asarray(shown.rows)[:: max(len(shown.rows) // 10, 1)][:10]
        rows, key = np.repeat(picked, columns, axis=0), jax.random.key(0)
        draw = jax.jit(lambda split: batches.distorted(split, rows, key, run.program.pipeline))
        images = np.rint(255 * np.asarray(draw(train))).astype(np.uint8)
        # The first of each row is not distorted.
        images[::columns] = dataset.examples(train._replace(rows=picked), recipe)[0]
        title = figures.noted("Augmentation: a row per example, the first as it is", note)
        figures.sheet(images, workdir / "augmented.png", columns, title)
