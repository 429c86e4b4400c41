"""The one loop. Only here are programs jitted and files written while a run goes on."""

import dataclasses
import datetime
import json
import math
import platform
import shlex
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digits_jax import devices, figures, models, report, settings, trained
from digits_jax.checkpoint import Checkpoints
from digits_jax.console import DRAWN_NOTICE, EpochBar, console, percent, warn
from digits_jax.data import batches
from digits_jax.data.batches import Dataset, Split
from digits_jax.engine import ENGINES
from digits_jax.errors import UserError
from digits_jax.metrics import add, means
from digits_jax.population import Population, Teacher, members_of, slice_size, slices
from digits_jax.step import current
from digits_jax.trained import Trained
from digits_jax.types import Members, Metrics, PyTree, TrainState

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_SPLITS = ("train", "validation", "test")
_FULL = 0.9  # of a device's memory
_CHUNK = 1024  # most steps per dispatch where they are scanned: an epoch of nearly every config
_OWN_FILES = (  # of a run, in its workdir; what makes it one goes last when they are deleted
    *("checkpoints", "tensorboard", "summary.json", "metrics.jsonl", "per_class.csv"),
    *("curves.png", "confusion.png", "errors.png", "examples.png", "augmented.png"),
    *("calibration.png", trained.FILE, trained.EPOCHS),
    *("predictions.csv", "filters.png", "feature_maps.png", "attribution.png"),
    "config.json",
)


@dataclasses.dataclass
class Run:
    """A run in memory: its data, its compiled programs and the states of its slices."""

    config: Any
    data: Dataset
    ids: list[range]
    members: list[Members]
    states: list[TrainState]
    programs: Population
    teacher: Teacher | None
    chunk: int
    parameters: int
    compiled: bool = False

    def __post_init__(self) -> None:
        programs: Any = self.programs
        self.train, self._evaluate = programs.train, programs.evaluate
        if self.programs.compiled:
            self.train = devices.jit_over_members(
                self.train, (3, 4, 5, 7), static_argnames="steps", donate_argnums=(0, 1)
            )
            self._evaluate = jax.jit(self._evaluate)
        self.order = jax.jit(self.programs.order, static_argnames="n")
        self.track = jax.jit(self.programs.track, donate_argnums=0)

    @property
    def steps_per_epoch(self) -> int:
        return batches.steps_per_epoch(self.data.train.size, self.config.batch_size)

    def evaluate(
        self, weights: tuple[PyTree, PyTree], split: Split, folds: Any
    ) -> tuple[Metrics, dict[str, np.ndarray]]:
        """-> (sums by member, {head: [S, N, C] log-probabilities}) over all of `split`.

        With cross-validation, each member's own part of it: `folds` [S].
        """
        totals, outputs = self.programs.zeros(len(folds)), []
        rows_of = batches.padded_rows(split.of(folds).rows, self.config.eval_batch_size)
        # One program for whatever is evaluated.
        digits = split._replace(rows=split.rows[:0], pool=split.pool[:0])
        for rows, mask in rows_of:
            new, log_p = self._evaluate(weights, digits, self.data.normalizer, rows, mask)
            totals = add(totals, new)
            outputs.append(log_p)
        joined = jax.tree.map(
            lambda *parts: np.concatenate([np.asarray(x) for x in parts], axis=1), *outputs
        )
        n, heads = split.size, self.data.recipe.heads
        return jax.device_get(totals), {head: joined[head][:, :n] for head in heads}

    def evaluate_chosen(self, split: Split) -> list[tuple[Metrics, dict[str, np.ndarray]]]:
        """`evaluate` for every slice, under the weights that the run is judged by."""
        return [
            self.evaluate(self.programs.chosen(state), split, members.fold)
            for state, members in zip(self.states, self.members, strict=True)
        ]

    def bytes_needed(self) -> int:
        """Of a device's memory: the first slice's larger program, and all states but its own twice,
        as a checkpoint copies them.
        """
        data, members, state = self.data, self.members[0], self.states[0]
        order = jax.eval_shape(lambda m: self.programs.order(m, 1, data.train.size), members)
        totals = self.programs.zeros(len(self.ids[0]))
        rows, mask = batches.padded_rows(data.test.rows, self.config.eval_batch_size)[0]
        programs = (
            self.train.lower(
                *(state, totals, order, 0, data.train, data.normalizer, members, self.teacher),
                steps=self.chunk,
            ),
            self._evaluate.lower(current(state), data.test, data.normalizer, rows, mask),
        )
        used: list[Any] = [program.compile().memory_analysis() for program in programs]
        most = max(
            u.argument_size_in_bytes
            + u.output_size_in_bytes
            + u.temp_size_in_bytes
            - u.alias_size_in_bytes
            for u in used
        )
        own, every = (
            sum(x.nbytes for x in jax.tree.leaves(states)) for states in (state, self.states)
        )
        return most + 2 * every - own

    def scores(self) -> np.ndarray:
        """[P] float: the best validation accuracy of each member so far, -inf before the first."""
        return np.concatenate([np.asarray(state.best.score) for state in self.states])

    def stop(self, member: int) -> None:
        """That member trains no further, as if stopped early."""
        i, m = divmod(member, len(self.ids[0]))
        best = self.states[i].best
        stopped = jnp.asarray(best.stopped).at[m].set(True)
        best = dataclasses.replace(best, stopped=stopped)
        self.states[i] = dataclasses.replace(self.states[i], best=best)

    def saved(self) -> PyTree:
        """What a checkpoint holds: the states, and the normaliser that belongs to them."""
        return {"slices": self.states, "normalizer": self.data.normalizer._asdict()}

    def take(self, saved: PyTree) -> None:
        """Goes on from what a checkpoint held."""
        self.states = jax.device_get(saved["slices"]) if len(jax.devices()) > 1 else saved["slices"]
        normalizer = devices.replicate(batches.Normalizer(**saved["normalizer"]))
        self.data = self.data._replace(normalizer=normalizer)


def build(config: Any, members: Members | None = None) -> Run:
    """Data on the device, the network, and fresh states, as a checked `config` says.

    members: those to train instead of the config's own. Writes the source of the data and the
    slice's size into `config`, where it left them open: as `slice_size` has it, or as much of that
    as the device's memory holds.
    """
    backend = devices.start(batches.cache_dir(config.data))
    data = batches.load(config.data)
    arrays = devices.replicate((data.train, data.validation, data.test, data.normalizer))
    names = ("train", "validation", "test", "normalizer")
    data = data._replace(**dict(zip(names, arrays, strict=True)))
    config.data.source = data.source
    members = members or members_of(config, range(config.population.size))
    steps = batches.steps_per_epoch(data.train.size, config.batch_size)
    source = _learned_from(config) if config.distill.teacher else None
    engine = ENGINES[config.engine]
    programs = engine(config, data.recipe, steps, source.population if source else None)
    init = devices.jit_once(programs.init) if programs.compiled else programs.init

    def sliced(width: int) -> Run:
        ids = slices(len(members.seed), width)
        parts = [jax.tree.map(lambda x, i=i: x[i.start : i.stop], members) for i in ids]
        states = [init(part) for part in parts]
        return Run(
            config,
            data,
            ids,
            parts,
            states,
            programs,
            source.teacher() if source else None,
            chunk=min(steps, _CHUNK) if programs.compiled and backend != "cpu" else 1,
            parameters=models.count_parameters(states[0].params) // len(ids[0]),
        )

    asked = config.population.slice
    width = slice_size(len(members.seed), backend, len(jax.devices()))
    width = asked or (width if programs.compiled else 1)
    run, room = sliced(width), devices.memory()
    while not asked and room and width > 1 and run.bytes_needed() > _FULL * room:
        width = -(-width // 2)
        width -= width % len(jax.devices()) if width > len(jax.devices()) else 0
        run = sliced(width)
    config.population.slice = width
    return run


def _learned_from(config: Any) -> Trained:
    """The run that teaches; UserError where it cannot teach this one."""
    teacher = Trained(Path(config.distill.teacher))
    theirs, ours = teacher.config.data, config.data
    where = f"config.distill.teacher={config.distill.teacher}"
    if theirs.dataset != ours.dataset:
        raise UserError(f"{where} knows {theirs.dataset}, not {ours.dataset}")
    if not (ours.validation or ours.folds):
        return teacher
    same = ["source", "seed", "validation", "folds"]
    same += ["drawn_train"] if ours.source == "drawn" else []
    other = [field for field in same if theirs[field] != ours[field]]
    if other or ours.folds:  # of folds, its other members know what each one leaves out
        raise UserError(
            f"{where} was trained on digits that this run validates on "
            f"(data.{(other or ['folds'])[0]}); train both alike, without folds, or this one with "
            "--config.data.validation=0"
        )
    return teacher


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


def train(config: Any, workdir: Path) -> None:
    """Trains what `config` describes into `workdir`, from its last checkpoint if it has one.

    Raises UserError if the workdir holds a run of another config or cannot be written.
    """
    clock = Clock()
    settings.check(config)
    asked = config.data.source
    if _prepare(config, workdir):
        console.print(
            f"This run is finished; its result stands in {workdir / 'summary.json'}.\n"
            "--config.resume=False starts it over, --mode=eval evaluates it again."
        )
        return
    run = build(config)
    if not config.resume:
        _clear(workdir)
    report.write_json(workdir / "config.json", settings.as_dict(config))
    _introduce(run, workdir, asked)

    with Checkpoints(workdir) as checkpoints:
        _train(run, workdir, checkpoints, clock)
    _finish(run, workdir, clock)


def _train(run: Run, workdir: Path, checkpoints: Checkpoints, clock: Clock) -> None:
    """The epochs that are left."""
    config, done = run.config, 0
    restored = checkpoints.restore(run.saved())
    if restored:
        done, saved, meta = restored
        run.take(saved)
        clock.add(meta["seconds"])
        console.print(f"Resumed after epoch {done}.")
    for name in ("summary.json", trained.FILE):  # they would say that the run is finished
        (workdir / name).unlink(missing_ok=True)
    kept = report.rewind(workdir / "metrics.jsonl", done)
    with report.EventWriter(workdir, kept) as events:
        for number in range(done + 1, config.epochs + 1):
            if all(np.all(state.best.stopped) for state in run.states):
                break
            rows = epoch(run, number, clock)
            _check(rows)
            report.append_rows(workdir / "metrics.jsonl", rows)
            events.append(rows)
            clock.lap()
            if config.keep_epochs:
                _keep(run, workdir, number)
            checkpoints.save(number, run.saved(), {"seconds": dict(clock.seconds)})
            _epoch_line(run, number, rows)


def _keep(run: Run, workdir: Path, number: int) -> None:
    """Writes the weights that this epoch was evaluated with."""
    size = run.config.population.size
    trained.write(
        trained.epoch_file(workdir, number),
        settings.as_dict(run.config),
        jax.tree.map(lambda *x: np.concatenate(x), *map(current, run.states)),
        run.data.normalizer,
        [number] * size,
        np.ones(size + 1),
    )


def _prepare(config: Any, workdir: Path) -> bool:
    """Makes or takes over the workdir; True if it holds this very run, finished."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written: {error.strerror}; choose another folder"
        ) from None
    recorded = settings.read(workdir) if config.resume else None
    if recorded is None:
        return False
    if config.data.source == "auto":
        config.data.source = recorded["data"]["source"]
    config.population.slice = config.population.slice or recorded["population"]["slice"]
    differences = settings.differences(recorded, config)
    if differences:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(differences)}); choose another "
            "--workdir, or --config.resume=False to delete that run and start this one"
        )
    if not (workdir / "checkpoints").is_dir():
        return False  # a summary alone, as a clone of the repository has it
    try:
        summary = json.loads((workdir / "summary.json").read_text())
    except (OSError, ValueError):
        return False
    return "test" in summary or not config.report_test


def _clear(workdir: Path) -> None:
    """Deletes the files of an earlier run, and no others."""
    for name in _OWN_FILES:
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _introduce(run: Run, workdir: Path, asked: str) -> None:
    config, data = run.config, run.data
    if asked == "auto" and data.source == "drawn":
        warn("\n".join(filter(None, (DRAWN_NOTICE, data.reason))))
    validation = data.validation.size if data.validation else 0
    size = config.population.size
    console.print(
        f"[bold]{config.name}[/bold]: {config.model.name}, {run.parameters:,} parameters"
        + (f", {size} members" if size > 1 else "")
        + (f" in slices of {len(run.ids[0])}" if 1 < len(run.ids[0]) < size else "")
        + f"; {data.source} digits, {data.train.size:,} training and {validation:,} "
        f"validation examples; {jax.default_backend()}; into {workdir}"
    )


def epoch(run: Run, number: int, clock: Clock) -> list[dict[str, Any]]:
    """Trains and evaluates every member that has not stopped; -> its rows of metrics.jsonl."""
    config = run.config
    running = [i for i, state in enumerate(run.states) if not np.all(state.best.stopped)]
    images = run.steps_per_epoch * config.batch_size * sum(len(run.ids[i]) for i in running)
    rows = []
    with EpochBar(f"epoch {number:>2}/{config.epochs}", images) as bar:
        for i in running:
            stopped = np.asarray(run.states[i].best.stopped)
            clock.lap()
            trained = _train_slice(run, i, number, clock, bar)
            seconds = clock.lap("train")
            scores = _evaluate_slice(run, i, number)
            rows += [
                {
                    **_row(run, number, i, m),
                    **means(trained, m),
                    **{
                        f"{split}_{name}": value
                        for split, sums in scores.items()
                        for name, value in means(sums, m).items()
                    },
                    "seconds": round(seconds / (~stopped).sum(), 3),
                }
                for m in range(len(run.ids[i]))
                if not stopped[m]
            ]
    return rows


def _check(rows: list[dict[str, Any]]) -> None:
    """UserError for a loss that is no number."""
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"the loss of member {row['member']} became {row['loss']} in epoch {row['epoch']} "
                f"at the learning rate {row['learning_rate']:.3g}; a lower "
                "--config.optimizer.learning_rate may help"
            )


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


def _train_slice(run: Run, i: int, epoch: int, clock: Clock, bar: EpochBar) -> Metrics:
    """An epoch of slice `i`; the device is waited for a few times a second, to draw the bar."""
    data, members, size = run.data, run.members[i], len(run.ids[i])
    order = run.order(members, epoch, n=data.train.size)
    state, totals = run.states[i], run.programs.zeros(size)
    images = run.config.batch_size * size
    start = shown = 0
    ahead = bar.advance(0)
    while start < run.steps_per_epoch:
        steps = min(run.chunk, run.steps_per_epoch - start)
        state, totals = run.train(
            *(state, totals, order, start, data.train, data.normalizer, members, run.teacher),
            steps=steps,
        )
        start += steps
        if not run.compiled:
            jax.block_until_ready(totals)
            clock.lap("compile")
            run.compiled = True
            bar.advance(0)
        elif (start - shown) * images > ahead or start == run.steps_per_epoch:
            jax.block_until_ready(totals)
            ahead = bar.advance((start - shown) * images)
            shown = start
    run.states[i] = state
    return jax.device_get(totals)


def _evaluate_slice(run: Run, i: int, epoch: int) -> dict[str, Metrics]:
    """Evaluates slice `i` on validation and on as many training examples; keeps the best weights.

    -> {'train': ..., 'validation': ...}, empty where there is no validation.
    """
    if run.data.validation is None:
        return {}
    weights, folds = current(run.states[i]), run.members[i].fold
    n = run.data.validation.size
    some = run.data.train._replace(rows=run.data.train.rows[..., :n, :])
    scores = {
        "train": run.evaluate(weights, some, folds)[0],
        "validation": run.evaluate(weights, run.data.validation, folds)[0],
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
        best = run.scores().mean()
        parts.append(f"validation {percent(mean('validation_accuracy'))} (best {percent(best)})")
    seconds = sum(row["seconds"] for row in rows)
    images = len(rows) * run.steps_per_epoch * run.config.batch_size
    if seconds > 0:  # not where compiling was all
        parts.append(f"{images / seconds:,.0f} images/s  {seconds:.0f} s")
    console.print("  ".join(parts))


def _finish(run: Run, workdir: Path, clock: Clock) -> None:
    """Evaluates the chosen weights on every split, the test split once, and writes the report."""
    config, data = run.config, run.data
    rows = report.read_rows(workdir / "metrics.jsonl")
    scores, temperatures = {}, None
    for name, split in (("train", data.train), ("validation", data.validation)):
        if split is not None:
            outputs = run.evaluate_chosen(split)
            scores[name] = [
                means(sums, m) for sums, _ in outputs for m in range(len(sums.examples))
            ]
            if name == "validation":
                folds = np.concatenate([members.fold for members in run.members])
                shared = split.of(folds) if config.data.folds else split
                temperatures = report.fit_temperatures(
                    batches.labels(shared, data.recipe), _joined(outputs)
                )
    tested: tuple[Any, ...] = ()
    if config.report_test:
        images, labels = batches.examples(data.test, data.recipe)
        tested = (labels, _joined(run.evaluate_chosen(data.test)), images, temperatures)
    clock.lap()
    epochs = max((row["epoch"] for row in rows), default=0)
    seen = len(rows) * run.steps_per_epoch * config.batch_size
    last = {row["member"]: row["epoch"] for row in rows}
    best = np.concatenate([np.asarray(state.best.epoch) for state in run.states]).tolist()
    epoch_of = best if config.data.validation else [last[i] for i in range(len(best))]
    facts = {
        "config": settings.as_dict(config),
        "command": "python " + shlex.join(sys.argv),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": jax.default_backend(),
        "matmul_precision": devices.matmul_precision(),
        "data": {
            "dataset": config.data.dataset,
            "source": data.source,
            "test_source": config.data.test_source or data.source,
            **{
                name: split.size if split else 0
                for name, split in zip(
                    _SPLITS, (data.train, data.validation, data.test), strict=True
                )
            },
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
            }
            for member in range(config.population.size)
        ],
    }
    _show_examples(run, workdir)
    trained.write(
        workdir / trained.FILE,
        facts["config"],
        jax.tree.map(lambda *x: np.concatenate(x), *map(run.programs.chosen, run.states)),
        data.normalizer,
        epoch_of,
        np.ones(len(best) + 1) if temperatures is None else temperatures,
    )
    summary = report.write(workdir, facts, rows, *tested)
    if tested:
        console.print(f"[bold]test {report.headline(summary)}[/bold]")
    console.print(f"summary.json, metrics.jsonl and the pictures stand in {workdir}")


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
