"""A run in memory: its data on the device, its compiled functions, the states of its members."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from digits_jax import files, models
from digits_jax.console import status
from digits_jax.core import population
from digits_jax.core.step import Program, best_weights, eval_weights, first_state, zero_metrics
from digits_jax.data import batches, dataset
from digits_jax.data.recipes import recipe_of
from digits_jax.devices import backend, hosts
from digits_jax.devices.mesh import Layout, fetch
from digits_jax.errors import UserError
from digits_jax.training import distill, prune
from digits_jax.training.checkpoint import digest
from digits_jax.training.engines import ENGINES
from digits_jax.training.predictor import Predictor
from digits_jax.types import (
    Carry,
    Members,
    Metrics,
    Normalizer,
    PrecomputedTargets,
    PyTree,
    Shared,
    Split,
    Teacher,
    TrainState,
    Weights,
)

_CHUNK = 1024  # most steps of a `lax.scan`: an epoch of nearly every config


@dataclasses.dataclass
class Position:
    """How far an epoch is.

    slice: the one that is trained; start: its finished steps; totals, seconds: their summed metrics
    and time; rows: of the slices before it.
    """

    slice: int = 0
    start: int = 0
    totals: Metrics | None = None
    seconds: float = 0.0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which keeps floats exactly, but has null instead of NaN."""
        totals = fetch(self.totals)
        return files.plain(vars(self) | {"totals": totals and totals._asdict()})

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Position":
        """What `as_dict` was made of."""

        def array(values: list) -> jax.Array:
            return jnp.asarray(np.asarray(values, float), jnp.result_type(float))

        totals = fields["totals"] and Metrics(**fields["totals"])
        totals = jax.tree.map(array, totals, is_leaf=lambda x: isinstance(x, list))
        return cls(**fields | {"totals": totals})


class Compiled:
    """A jitted function that is compiled ahead of its calls: once for all shapes and dtypes.

    Sharding is no part of the key: it never changes within a run.
    """

    def __init__(self, function: Any):
        self.lower = function.lower
        self._executables: dict[Hashable, jax.stages.Compiled] = {}

    def compile(self, *arguments: PyTree, **static: Hashable) -> jax.stages.Compiled:
        """The executable for these arguments; it is called without the static ones."""
        leaves, structure = jax.tree.flatten(arguments)
        kinds = tuple((np.shape(x), jnp.result_type(x)) for x in leaves)
        key = (structure, kinds, *static.items())
        if key not in self._executables:
            self._executables[key] = self.lower(*arguments, **static).compile()
        return self._executables[key]

    def __call__(self, *arguments: PyTree, **static: Hashable) -> PyTree:
        return self.compile(*arguments, **static)(*arguments)


@dataclasses.dataclass
class Run:
    """A run in memory.

    ids, members, states: by slice; engine: `core.population` or `scratch.population`; program: what
    is static in it; chunk: the most steps of one call; compiled: whether that is done;
    inputs: {config field: SHA-256 of the weights that it names};
    position: within the epoch that is trained; diverged: {member: where its loss stopped being a
    number}.
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
    compiled: bool = False
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    position: Position = dataclasses.field(default_factory=Position)
    diverged: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        engine, jit = self.engine, self.layout.jit
        self.train, self._evaluate = engine.train_steps, engine.evaluate
        if engine.JITTABLE:
            static = ("program", "steps")
            self.train = Compiled(jit(engine.train_steps, static_argnames=static, donate_argnums=0))
            self._evaluate = Compiled(jit(engine.evaluate, static_argnames="program"))
        self._order = jit(population.order, static_argnames=("program", "n"))
        self._track = jit(population.track, static_argnames="program", donate_argnums=0)

    @property
    def steps_per_epoch(self) -> int:
        return self.program.pipeline.steps_per_epoch

    @property
    def images_per_epoch(self) -> int:
        """Of one member."""
        return self.steps_per_epoch * self.config.batch_size

    def begin_epoch(self, i: int, epoch: int, totals: Metrics | None = None) -> Carry:
        """Slice `i` for `train_steps`; totals: of the steps of the epoch that are done."""
        members, n = self.members[i], self.data.train.size
        totals = totals or zero_metrics(self.data.recipe.heads, (len(self.ids[i]),))
        order = self._order(members, epoch, program=self.program, n=n)
        return Carry(self.states[i], self.layout.over_members(totals), order, members)

    def evaluate(
        self, weights: Weights, members: Members, split: Split, answers: bool = True
    ) -> tuple[Metrics, dict[str, np.ndarray]]:
        """-> (metrics by member, {head: [S, N, C] log-probabilities}) over all of `split`.

        With cross-validation, each member's own part of it. Without `answers` the second is {}, and
        takes no memory.
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

    def evaluate_best(
        self, split: Split, answers: bool = True
    ) -> list[tuple[Metrics, dict[str, np.ndarray]]]:
        """`evaluate` for each slice, with its best weights."""
        return [
            self.evaluate(best_weights(state), members, split, answers)
            for state, members in zip(self.states, self.members, strict=True)
        ]

    def track(self, i: int, score: np.ndarray, epoch: int) -> None:
        """Keeps the weights of the members of slice `i` whose `score` [S] is their best so far."""
        self.states[i] = self._track(self.states[i], score, epoch, program=self.program)

    def compile(self) -> list[jax.stages.Compiled]:
        """Compiles what the epochs call, so that no step waits for it; -> the executables."""
        if not self.engine.JITTABLE:
            return []
        executables = []
        for i in {len(ids): i for i, ids in enumerate(self.ids)}.values():
            carry = self.begin_epoch(i, 1)
            for steps in {min(self.chunk, self.steps_per_epoch), self.steps_per_epoch % self.chunk}:
                if steps:
                    static = {"program": self.program, "steps": steps}
                    executables.append(self.train.compile(carry, self.shared, **static))
            if self.data.validation is not None:
                executables.append(self._compile_evaluation(i, self.data.validation))
        return executables

    def _compile_evaluation(self, i: int, split: Split) -> jax.stages.Compiled:
        arguments = (eval_weights(self.states[i]), self.members[i]), next(self._batches(split))
        return self._evaluate.compile(*arguments, program=self.program)

    def stepper(self, carry: Carry, steps: int) -> Callable[[Carry], Carry]:
        """`train_steps` for such a carry and so many steps, compiled."""
        if self.engine.JITTABLE:
            executable = self.train.compile(carry, self.shared, program=self.program, steps=steps)
            return lambda carry: executable(carry, self.shared)
        return lambda carry: self.train(carry, self.shared, program=self.program, steps=steps)

    def bytes_needed(self) -> int:
        """Peak bytes per device: the largest executable, all other states, and a copy of all states
        for the checkpoint.
        """
        rows = self.data.test.rows[..., : self.config.eval_batch_size, :]
        test = self.data.test._replace(rows=rows)
        executables = [*self.compile(), self._compile_evaluation(0, test)]
        used: list[Any] = [executable.memory_analysis() for executable in executables]
        most = max(
            u.argument_size_in_bytes
            + u.output_size_in_bytes
            + u.temp_size_in_bytes
            - u.alias_size_in_bytes
            for u in used
        )
        first, every = (sum(map(_bytes, jax.tree.leaves(x))) for x in (self.states[0], self.states))
        return most + 2 * every - first

    def scores(self) -> np.ndarray:
        """[P] float: the best validation accuracy of each member so far, -inf before the first."""
        return np.concatenate([fetch(state.best.score) for state in self.states])

    def stop(self, member: int) -> None:
        """Marks a member as stopped early, so that it trains no further."""
        i, m = divmod(member, len(self.ids[0]))
        best = self.states[i].best
        best = dataclasses.replace(best, stopped=jnp.asarray(best.stopped).at[m].set(True))
        self.states[i] = dataclasses.replace(self.states[i], best=best)

    def gathered(self, weights_of: Callable[[TrainState], Weights]) -> Weights:
        """[P, ...] on the host: the weights of all members, as `weights_of` selects them."""
        return jax.tree.map(lambda *x: np.concatenate(x), *fetch([*map(weights_of, self.states)]))

    def checkpoint(self) -> PyTree:
        """What a checkpoint holds: the states, and the normaliser that belongs to them."""
        return {"slices": self.states, "normalizer": self.data.normalizer._asdict()}

    def restore(self, saved: PyTree) -> None:
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
    """The run of a resolved `config`, before its first step.

    members: those to train instead of the config's own. shapes: the states are
    `jax.ShapeDtypeStruct`s and no teacher predicts: enough to compile.
    """
    engine = ENGINES[config.engine]
    if hosts.several() and not engine.JITTABLE:
        raise UserError(f"config.engine={config.engine} trains in one process")
    only = None if engine.JITTABLE else jax.devices()[:1]
    layout = Layout(config.mesh.data, config.batch_size, only)
    status("reading the digits")
    data = dataset.load(config.data)
    status("preparing the network", brief=True)
    hosts.agree("their digits", *data.train, *data.test)
    members = members or population.members_of(config, range(config.population.size))
    source = _teacher_run(config) if config.distill.teacher else None
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
    ids = population.slices(len(members.seed), config.population.slice)
    parts = [jax.tree.map(lambda x, i=i: x[i.start : i.stop], members) for i in ids]
    init = engine.init
    if engine.JITTABLE:
        init = layout.jit(engine.init, static_argnames="program", **backend.once())
    if shapes:
        states = [layout.over_members(engine.shapes(part, program=program)) for part in parts]
    else:
        states = [init(part, program=program) for part in parts]
    if config.prune.run and not shapes:
        pruned = [prune.begin(config, range_of) for range_of in ids]
        hosts.agree("the weights that they prune", *jax.tree.leaves(pruned))
        inputs["prune.run"] = digest(pruned[0], {})
        first = jax.vmap(functools.partial(first_state, program=program))
        states = [
            layout.over_members(fetch(first(weights, state.opt_state)))
            for weights, state in zip(pruned, states, strict=True)
        ]
    scanned = engine.JITTABLE and jax.default_backend() != "cpu"
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


def _teacher_run(config: ConfigDict) -> Predictor:
    """The run that teaches; UserError where it cannot teach this one."""
    where = f"config.distill.teacher={config.distill.teacher}"
    if not (Path(config.distill.teacher) / "config.json").exists():
        raise UserError(f"{where} holds no run; train that one first, or name another folder")
    teacher = Predictor(Path(config.distill.teacher))
    theirs, ours = teacher.config.data, config.data
    needed = "mnist" if config.distill.views else ours.dataset
    if theirs.dataset != needed:
        way = "views are of single digits" if needed != ours.dataset else "choose another"
        if theirs.dataset == "mnist":
            way = "with --config.distill.views=20 it can teach pairs, too"
        raise UserError(f"{where} knows {theirs.dataset}, not {needed}; {way}")
    if tuple(theirs.classes) != tuple(ours.classes):
        raise UserError(f"{where} knows other classes than those of data.source={ours.source}")
    if config.distill.views and recipe_of(ours).digits > 1 and not config.augment.per_digit:
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
