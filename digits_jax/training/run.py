"""A run in memory: data on the device, compiled programs, and the states of its members."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax import models
from digits_jax.core.population import members_of, slices
from digits_jax.core.step import Program, chosen, current, starting
from digits_jax.data import batches, dataset
from digits_jax.data.recipes import RECIPES
from digits_jax.devices import backend, hosts
from digits_jax.devices.mesh import Layout, fetch
from digits_jax.errors import UserError
from digits_jax.training import distill, prune
from digits_jax.training.checkpoint import digest
from digits_jax.training.engines import ENGINES
from digits_jax.training.predictor import Predictor
from digits_jax.types import (
    Members,
    Metrics,
    Normalizer,
    PrecomputedTargets,
    PyTree,
    Shared,
    Slice,
    Split,
    Teacher,
    TrainState,
    Weights,
)

_CHUNK = 1024  # most steps of a `lax.scan`: an epoch of nearly every config


@dataclasses.dataclass
class Position:
    """Progress within an epoch.

    slice, start: the current slice and its finished steps; totals, seconds: their summed metrics
    and time; rows: of the finished slices.
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

    Sharding is not part of the key: it never changes within a run.
    """

    def __init__(self, function: Any):
        self.lower = function.lower
        self._programs: dict[Hashable, jax.stages.Compiled] = {}

    def compile(self, *arguments: PyTree, **static: Hashable) -> jax.stages.Compiled:
        """The executable for these arguments; it is called without the static ones."""
        leaves, structure = jax.tree.flatten(arguments)
        kinds = tuple((np.shape(x), jnp.result_type(x)) for x in leaves)
        key = (structure, kinds, *static.items())
        if key not in self._programs:
            self._programs[key] = self.lower(*arguments, **static).compile()
        return self._programs[key]

    def __call__(self, *arguments: PyTree, **static: Hashable) -> PyTree:
        return self.compile(*arguments, **static)(*arguments)


@dataclasses.dataclass
class Run:
    """A run in memory: its data, its compiled programs and the states of its slices.

    compiling: seconds that compiling took; ready: it is done, and they are counted.
    inputs: {config field: SHA-256 of the weights of the teacher, or of the run that is pruned}.
    diverged: {member: where its loss stopped being a number}.
    """

    config: ConfigDict
    data: dataset.Dataset
    ids: list[range]
    members: list[Members]
    states: list[TrainState]
    engine: ModuleType
    program: Program
    shared: Shared
    layout: Layout
    chunk: int
    parameters: int
    compiling: float = 0.0
    ready: bool = False
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    position: Position = dataclasses.field(default_factory=Position)
    diverged: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        engine, jit = self.engine, self.layout.jit
        self.train, self._evaluate = engine.train, engine.evaluate
        if engine.COMPILED:
            static = ("program", "steps")
            self.train = Compiled(jit(engine.train, static_argnames=static, donate_argnums=0))
            self._evaluate = Compiled(jit(engine.evaluate, static_argnames="program"))
        self._order = jit(engine.order, static_argnames=("program", "n"))
        self._track = jit(engine.track, static_argnames="program", donate_argnums=0)

    @property
    def steps_per_epoch(self) -> int:
        return self.program.pipeline.steps_per_epoch

    def start(self, i: int, epoch: int, totals: Metrics | None = None) -> Slice:
        """Slice `i` at the start of an epoch, or where it was left with such `totals`."""
        members, n = self.members[i], self.data.train.size
        zeros = self.engine.zeros(len(self.ids[i]), program=self.program)
        order = self._order(members, epoch, program=self.program, n=n)
        return Slice(self.states[i], self.layout.over_members(totals or zeros), order, members)

    def evaluate(
        self, weights: Weights, members: Members, split: Split, answers: bool = True
    ) -> tuple[Metrics, dict[str, np.ndarray]]:
        """-> (sums by member, {head: [S, N, C] log-probabilities}) over all of `split`.

        With cross-validation, each member's own part of it. Without `answers` the second is {},
        and nothing of that size is kept.
        """
        sums, outputs = [], []
        for shared in self._batches(split):
            new, log_p = self._evaluate((weights, members), shared, program=self.program)
            sums.append(new)
            if self.layout.data > 1 and jax.default_backend() == "cpu":
                jax.block_until_ready(new)  # XLA has few threads for virtual devices that wait
            if answers:
                outputs.append(log_p)
        total = fetch(functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums))
        if not answers:
            return total, {}
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *fetch(outputs))
        return total, {head: log_p[:, : split.size] for head, log_p in joined.items()}

    def _batches(self, split: Split) -> Iterator[Shared]:
        """Batches to evaluate, all of one shape, so that all splits share an executable."""
        none = split.pool[..., :0]
        for rows, mask in batches.padded_rows(split.rows, self.config.eval_batch_size):
            part = split._replace(rows=rows, pool=none)
            yield Shared(part, self.data.normalizer, mask=mask)

    def evaluate_chosen(
        self, split: Split, answers: bool = True
    ) -> list[tuple[Metrics, dict[str, np.ndarray]]]:
        """`evaluate` for every slice, with its best weights."""
        return [
            self.evaluate(chosen(state), members, split, answers)
            for state, members in zip(self.states, self.members, strict=True)
        ]

    def track(self, i: int, score: np.ndarray, epoch: int) -> None:
        """Keeps the weights of the members of slice `i` whose `score` [S] is their best so far."""
        self.states[i] = self._track(self.states[i], score, epoch, program=self.program)

    def compile(self) -> list[jax.stages.Compiled]:
        """Compiles what the epochs call, so that no step waits for it; -> the programs."""
        programs: list[jax.stages.Compiled] = []
        if not isinstance(self.train, Compiled) or not isinstance(self._evaluate, Compiled):
            return programs
        begun = time.perf_counter()
        for i in {len(ids): i for i, ids in enumerate(self.ids)}.values():
            own = self.start(i, 1)
            for steps in {min(self.chunk, self.steps_per_epoch), self.steps_per_epoch % self.chunk}:
                if steps:
                    program = {"program": self.program, "steps": steps}
                    programs.append(self.train.compile(own, self.shared, **program))
            if self.data.validation is not None:
                programs.append(self._compile_evaluation(i, self.data.validation))
        self.compiling += time.perf_counter() - begun
        return programs

    def _compile_evaluation(self, i: int, split: Split) -> jax.stages.Compiled:
        own = current(self.states[i]), self.members[i]
        return self._evaluate.compile(own, next(self._batches(split)), program=self.program)

    def stepper(self, own: Slice, steps: int) -> Callable[[Slice], Slice]:
        """`core.population.train`, compiled for such a slice and so many steps."""
        if isinstance(self.train, Compiled):
            compiled = self.train.compile(own, self.shared, program=self.program, steps=steps)
            return lambda own: compiled(own, self.shared)
        return lambda own: self.train(own, self.shared, program=self.program, steps=steps)

    def bytes_needed(self) -> int:
        """Peak bytes per device: the largest executable, all other states, and a copy of all states
        for the checkpoint.
        """
        rows = self.data.test.rows[..., : self.config.eval_batch_size, :]
        test = self.data.test._replace(rows=rows)
        programs = [*self.compile(), self._compile_evaluation(0, test)]
        used: list[Any] = [program.memory_analysis() for program in programs]
        most = max(
            u.argument_size_in_bytes
            + u.output_size_in_bytes
            + u.temp_size_in_bytes
            - u.alias_size_in_bytes
            for u in used
        )
        own, every = (sum(map(_bytes, jax.tree.leaves(x))) for x in (self.states[0], self.states))
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
        normalizer = self.layout.everywhere(Normalizer(**saved["normalizer"]))
        self.data = self.data._replace(normalizer=normalizer)
        self.shared = self.shared._replace(normalizer=normalizer)


def _bytes(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Of an array, on one device."""
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize


def build(config: ConfigDict, members: Members | None = None, *, shapes: bool = False) -> Run:
    """Data on the device, the network, and fresh states, as a resolved `config` says.

    members: those to train instead of the config's own. shapes: the states are
    `jax.ShapeDtypeStruct`s and no teacher predicts: enough to compile.
    """
    engine = ENGINES[config.engine]
    if hosts.several() and not engine.COMPILED:
        raise UserError(f"config.engine={config.engine} trains in one process")
    only = None if engine.COMPILED else jax.devices()[:1]
    layout = Layout(config.mesh.data, config.batch_size, only)
    data = dataset.load(config.data)
    hosts.agree("their digits", *data.train, *data.test)
    members = members or members_of(config, range(config.population.size))
    source = _learned_from(config) if config.distill.teacher else None
    pipeline = batches.pipeline_of(config, data.recipe, data.train.size)
    program = engine.program(config, pipeline, source.program if source else None)
    engine.shapes(members, program=program)  # fails early if the network cannot be built
    teacher: Teacher | PrecomputedTargets | None = source.teacher() if source else None
    if source and config.distill.views:
        teacher = distill.make(config, data.train, source, shapes=shapes)
        same = "what their teacher says; one --config.data.cache_dir for all of them ends that"
        if not shapes:
            hosts.agree(same, *jax.tree.leaves(teacher))
    arrays = data.train, data.validation, data.test, data.normalizer, teacher
    train, validation, test, normalizer, teacher = layout.everywhere(arrays)
    data = data._replace(train=train, validation=validation, test=test, normalizer=normalizer)
    inputs = {"distill.teacher": source.digest()} if source else {}
    ids = slices(len(members.seed), config.population.slice)
    parts = [jax.tree.map(lambda x, i=i: x[i.start : i.stop], members) for i in ids]
    init = engine.init
    if engine.COMPILED:
        init = layout.jit(engine.init, static_argnames="program", **backend.once())
    if shapes:
        states = [layout.over_members(engine.shapes(part, program=program)) for part in parts]
    else:
        states = [init(part, program=program) for part in parts]
    if config.prune.run and not shapes:
        first = [prune.begin(config, range_of) for range_of in ids]
        hosts.agree("the weights that they prune", *jax.tree.leaves(first))
        inputs["prune.run"] = digest(first[0], {})
        states = [
            layout.over_members(starting(state, weights))
            for state, weights in zip(states, first, strict=True)
        ]
    scanned = engine.COMPILED and jax.default_backend() != "cpu"
    return Run(
        config=config,
        data=data,
        ids=ids,
        members=parts,
        states=states,
        engine=engine,
        program=program,
        shared=Shared(train, normalizer, teacher),
        layout=layout,
        chunk=min(pipeline.steps_per_epoch, _CHUNK) if scanned else 1,
        parameters=models.count_parameters(states[0].params) // len(ids[0]),
        inputs=inputs,
    )


def _learned_from(config: ConfigDict) -> Predictor:
    """The run that teaches; UserError where it cannot teach this one."""
    teacher = Predictor(Path(config.distill.teacher))
    theirs, ours = teacher.config.data, config.data
    where = f"config.distill.teacher={config.distill.teacher}"
    needed = "mnist" if config.distill.views else ours.dataset
    if theirs.dataset != needed:
        way = "views are of single digits" if needed != ours.dataset else "choose another"
        if theirs.dataset == "mnist":
            way = "with --config.distill.views=20 it can teach pairs, too"
        raise UserError(f"{where} knows {theirs.dataset}, not {needed}; {way}")
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
    if other or ours.folds:  # with folds, the ensemble has seen every fold
        raise UserError(
            f"{where} was trained on digits that this run validates on "
            f"(data.{(other or ['folds'])[0]}); train both alike, without folds, or this one with "
            "--config.data.validation=0"
        )
    return teacher
