"""A run in memory: data on the device, compiled programs, and the states of its members."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax import models
from digits_jax.core.metrics import add
from digits_jax.core.population import Lessons, Population, Teacher, members_of, slice_size, slices
from digits_jax.core.step import current, starting
from digits_jax.data import batches
from digits_jax.data.batches import Dataset, Split
from digits_jax.data.recipes import RECIPES
from digits_jax.devices import backend as devices
from digits_jax.devices import hosts
from digits_jax.devices.mesh import Layout, fetch
from digits_jax.errors import UserError
from digits_jax.training import distill, prune
from digits_jax.training.checkpoint import digest
from digits_jax.training.engines import ENGINES
from digits_jax.training.predictor import Trained
from digits_jax.types import Members, Metrics, PyTree, TrainState

_FULL = 0.9  # of a device's memory
_CHUNK = 1024  # most steps per dispatch where they are scanned: an epoch of nearly every config


@dataclasses.dataclass
class Position:
    """How far an epoch has come.

    rows: of the slices before `slice`, which are through; of that slice `start` steps are done,
    `totals` sums their metrics, and they took `seconds`.
    """

    slice: int = 0
    start: int = 0
    totals: Metrics | None = None
    seconds: float = 0.0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which keeps floats exactly."""
        totals = jax.tree.map(lambda x: x.tolist(), fetch(self.totals))
        return dataclasses.asdict(self) | {"totals": totals and totals._asdict()}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Position":
        """The way back."""
        totals = fields["totals"]
        if totals:

            def array(values: list) -> jax.Array:
                # JSON has no NaN: it comes back from null.
                return jnp.asarray(np.asarray(values, float), jnp.result_type(float))

            totals = jax.tree.map(array, totals, is_leaf=lambda x: isinstance(x, list))
        return cls(**fields | {"totals": totals and Metrics(**totals)})


class Compiled:
    """A jitted function, compiled ahead of its calls: once for each structure, shapes and dtypes.

    Where its arguments lie does not count: a run keeps each of them in one place.
    """

    def __init__(self, function: Any):
        self.lower = function.lower
        self._programs: dict[Any, Any] = {}

    def compile(self, *arguments: Any, **static: Any) -> Any:
        """The program for such arguments, which takes them without the `static` ones."""
        leaves, structure = jax.tree.flatten(arguments)
        kinds = tuple((np.shape(x), jnp.result_type(x)) for x in leaves)
        key = (structure, kinds, *static.items())
        if key not in self._programs:
            self._programs[key] = self.lower(*arguments, **static).compile()
        return self._programs[key]

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        return self.compile(*arguments, **static)(*arguments)


@dataclasses.dataclass
class Run:
    """A run in memory: its data, its compiled programs and the states of its slices.

    compiling: seconds that compiling took; ready: it is done, and they are counted.
    inputs: {config field: the SHA-256 of the weights that it names}, of what the run learns from.
    diverged: {member: where its loss stopped being a number}.
    """

    config: ConfigDict
    data: Dataset
    ids: list[range]
    members: list[Members]
    states: list[TrainState]
    programs: Population
    teacher: Teacher | Lessons | None
    layout: Layout
    chunk: int
    parameters: int
    compiling: float = 0.0
    ready: bool = False
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    position: Position = dataclasses.field(default_factory=Position)
    diverged: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        programs: Any = self.programs
        self.train, self._evaluate, self._evaluate_own = (programs.train, *[programs.evaluate] * 2)
        layout = self.layout
        if self.programs.compiled:
            self.train = Compiled(
                layout.jit(self.train, (3, 4, 5, 7), static_argnames="steps", donate_argnums=(0, 1))
            )
            self._evaluate, self._evaluate_own = (
                Compiled(layout.jit(programs.evaluate, shared))
                for shared in ((1, 2, 3, 4), (1, 2, 4))
            )
        self.order = layout.jit(self.programs.order, (1,), static_argnames="n")
        self.track = layout.jit(self.programs.track, (2,), donate_argnums=0)

    @property
    def steps_per_epoch(self) -> int:
        return batches.steps_per_epoch(self.data.train.size, self.config.batch_size)

    def evaluate(
        self, weights: tuple[PyTree, PyTree], split: Split, folds: Any, answers: bool = True
    ) -> tuple[Metrics, dict[str, np.ndarray]]:
        """-> (sums by member, {head: [S, N, C] log-probabilities}) over all of `split`.

        With cross-validation, each member's own part of it: `folds` [S]. Without `answers` the
        second is {}, and nothing of that size is kept.
        """
        sums, outputs = [], []
        for arguments in self._batches(weights, split, folds):
            new, log_p = self._evaluation(split)(*arguments)
            sums.append(new)
            if self.layout.data > 1 and jax.default_backend() == "cpu":
                jax.block_until_ready(new)  # XLA has few threads for virtual devices that wait
            if answers:
                outputs.append(log_p)
        total = fetch(functools.reduce(add, sums))
        if not answers:
            return total, {}
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *fetch(outputs))
        return total, {head: joined[head][:, : split.size] for head in self.data.recipe.heads}

    def _batches(self, weights: Any, split: Split, folds: Any) -> Iterator[tuple[Any, ...]]:
        """The arguments of the program that evaluates, batch by batch."""
        # One program for whatever is evaluated.
        digits = split._replace(rows=split.rows[:0], pool=split.pool[:0])
        for rows, mask in batches.padded_rows(split.of(folds).rows, self.config.eval_batch_size):
            yield weights, digits, self.data.normalizer, rows, mask

    def _evaluation(self, split: Split) -> Any:
        """Of examples that are all members' own, or the same for all."""
        return self._evaluate_own if split.rows.ndim == 3 else self._evaluate

    def evaluate_chosen(
        self, split: Split, answers: bool = True
    ) -> list[tuple[Metrics, dict[str, np.ndarray]]]:
        """`evaluate` for every slice, under the weights that the run is judged by."""
        return [
            self.evaluate(self.programs.chosen(state), split, members.fold, answers)
            for state, members in zip(self.states, self.members, strict=True)
        ]

    def compile(self) -> list[Any]:
        """Compiles what the epochs call, so that no step waits for it; -> the programs."""
        programs: list[Any] = []
        begun = time.perf_counter()
        if not self.programs.compiled:
            return programs
        for i in {len(ids): i for i, ids in enumerate(self.ids)}.values():
            for steps in {min(self.chunk, self.steps_per_epoch), self.steps_per_epoch % self.chunk}:
                if steps:
                    programs.append(self.train.compile(*self._step(i), steps=steps))
            if self.data.validation is not None:
                split, folds = self.data.validation, self.members[i].fold
                arguments = next(self._batches(current(self.states[i]), split, folds))
                programs.append(self._evaluation(split).compile(*arguments))
        self.compiling += time.perf_counter() - begun
        return programs

    def program(self, *arguments: Any, steps: int) -> Callable[..., Any]:
        """What trains so many steps, of arguments like those of `_step`."""
        if self.programs.compiled:
            return self.train.compile(*arguments, steps=steps)
        return functools.partial(self.train, steps=steps)

    def _step(self, i: int) -> tuple[Any, ...]:
        """The arguments of the first step of slice `i`."""
        data, members = self.data, self.members[i]
        order = self.order(members, 1, n=data.train.size)
        totals = self.layout.over_members(self.programs.zeros(len(self.ids[i])))
        state = self.states[i]
        return state, totals, order, 0, data.train, data.normalizer, members, self.teacher

    def bytes_needed(self) -> int:
        """Of a device's memory: the largest program with its state, all other states, and a copy of
        all for the checkpoint.
        """
        programs = self.compile()
        rows = self.data.test.rows
        test = self.data.test._replace(rows=rows[: self.config.eval_batch_size])
        arguments = next(self._batches(current(self.states[0]), test, self.members[0].fold))
        programs.append(self._evaluate.compile(*arguments))
        used: list[Any] = [program.memory_analysis() for program in programs]
        most = max(
            u.argument_size_in_bytes
            + u.output_size_in_bytes
            + u.temp_size_in_bytes
            - u.alias_size_in_bytes
            for u in used
        )
        state = self.states[0]
        own, every = (sum(map(_bytes, jax.tree.leaves(states))) for states in (state, self.states))
        return most + 2 * every - own

    def scores(self) -> np.ndarray:
        """[P] float: the best validation accuracy of each member so far, -inf before the first."""
        return np.concatenate([fetch(state.best.score) for state in self.states])

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
        self.states = [self.layout.over_members(state) for state in saved["slices"]]
        normalizer = self.layout.everywhere(batches.Normalizer(**saved["normalizer"]))
        self.data = self.data._replace(normalizer=normalizer)


def _bytes(x: Any) -> int:
    """Of an array, on one device."""
    return x.addressable_shards[0].data.nbytes if isinstance(x, jax.Array) else x.nbytes


def build(config: ConfigDict, members: Members | None = None) -> Run:
    """Data on the device, the network, and fresh states, as a checked `config` says.

    members: those to train instead of the config's own. The run's own copy of `config` says where
    the digits came from, and the slice's size, where they were left open: as `slice_size` has it,
    or as much of that as the device's memory holds.
    """
    config = config.copy_and_resolve_references()
    data = batches.load(config.data)
    hosts.agree("their digits", *data.train, *data.test)
    engine = ENGINES[config.engine]
    if hosts.several() and not engine.compiled:
        raise UserError(f"config.engine={config.engine} trains in one process")
    only = None if engine.compiled else jax.devices()[:1]
    layout = Layout(config.mesh.data, config.batch_size, only)
    config.data.source = data.source
    config.data.test_source = config.data.test_source and data.test_source
    members = members or members_of(config, range(config.population.size))
    steps = batches.steps_per_epoch(data.train.size, config.batch_size)
    source = _learned_from(config) if config.distill.teacher else None
    programs = engine(config, data.recipe, steps, source.population if source else None)
    teacher: Any = source.teacher() if source else None
    inputs = {"distill.teacher": source.digest()} if source else {}
    if source and config.distill.views:
        programs.shapes(members)  # a network that cannot be is found before the long work
        teacher = distill.make(config, data.train, source)
        same = "what their teacher says; one --config.data.cache_dir for all of them ends that"
        hosts.agree(same, *jax.tree.leaves(teacher))
    arrays = data.train, data.validation, data.test, data.normalizer, teacher
    *arrays, teacher = layout.everywhere(arrays)
    names = ("train", "validation", "test", "normalizer")
    data = data._replace(**dict(zip(names, arrays, strict=True)))
    init = layout.jit(programs.init, **devices.once()) if programs.compiled else programs.init
    backend = jax.default_backend()

    def sliced(width: int) -> Run:
        ids = slices(len(members.seed), width)
        parts = [jax.tree.map(lambda x, i=i: x[i.start : i.stop], members) for i in ids]
        states = [init(part) for part in parts]
        if config.prune.run:
            first = [prune.begin(config, range_of) for range_of in ids]
            hosts.agree("the weights that they prune", *jax.tree.leaves(first))
            inputs["prune.run"] = digest(first[0], {})
            states = [
                layout.over_members(starting(state, *weights))
                for state, weights in zip(states, first, strict=True)
            ]
        return Run(
            config,
            data,
            ids,
            parts,
            states,
            programs,
            teacher,
            layout,
            chunk=min(steps, _CHUNK) if programs.compiled and backend != "cpu" else 1,
            parameters=models.count_parameters(states[0].params) // len(ids[0]),
            inputs=inputs,
        )

    asked = config.population.slice
    width = slice_size(len(members.seed), backend, layout.members, layout.data > 1)
    width = asked or (width if programs.compiled else 1)
    run, room = sliced(width), hosts.least(devices.memory() or 0)
    while not asked and room and width > 1 and run.bytes_needed() > _FULL * room:
        width = -(-width // 2)
        width -= width % layout.members if width > layout.members else 0
        run = sliced(width)
    config.population.slice = width
    return run


def _learned_from(config: ConfigDict) -> Trained:
    """The run that teaches; UserError where it cannot teach this one."""
    teacher = Trained(Path(config.distill.teacher))
    theirs, ours = teacher.config.data, config.data
    where = f"config.distill.teacher={config.distill.teacher}"
    taught = "mnist" if config.distill.views else ours.dataset
    if theirs.dataset != taught:
        way = "views are of single digits" if taught != ours.dataset else "choose another"
        if theirs.dataset == "mnist":
            way = "with --config.distill.views=20 it can teach pairs, too"
        raise UserError(f"{where} knows {theirs.dataset}, not {taught}; {way}")
    if config.distill.views and RECIPES[ours.dataset].digits > 1 and not config.augment.per_digit:
        raise UserError(
            f"config.distill.views={config.distill.views} are copies of single digits; they go "
            "with --config.augment.per_digit=True"
        )
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
