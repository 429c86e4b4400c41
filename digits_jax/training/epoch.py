"""One epoch of a run: all members are trained and evaluated, and their best weights are kept."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digits_jax.console import EpochBar, status
from digits_jax.core.step import eval_weights
from digits_jax.devices.mesh import fetch
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import Stopped
from digits_jax.training.run import Position, Run
from digits_jax.types import Metrics


class Clock:
    """Seconds by what they were spent on; they are saved and go on after a resume.

    epochs: of each whole epoch since then, with its evaluation.
    """

    def __init__(self) -> None:
        self.seconds = {"compile": 0.0, "train": 0.0, "total": 0.0}
        self.epochs = list[float]()
        self._last = time.perf_counter()

    def add(self, seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            self.seconds[name] += value

    def lap(self, name: str = "") -> float:
        """Adds the time since the last lap to the total and to `name`, and returns it."""
        now = time.perf_counter()
        took, self._last = now - self._last, now
        self.add({"total": took} | ({name: took} if name else {}))
        return took


def train_epoch(
    run: Run, number: int, clock: Clock, interrupts: NoInterrupts | None = None
) -> list[dict[str, Any]]:
    """Trains and evaluates the members that have not stopped, one slice after the other.

    -> their rows of metrics.jsonl. Begins at `run.position`. A member whose loss or weights are no
    longer finite is stopped, noted in `run.diverged`, and has no row. If the run is to stop, its
    progress is put into `run.position`, and `Stopped` is raised.
    """
    if not run.compiled:
        clock.lap()
        status("compiling")
        run.compile()
        clock.lap("compile")
        run.compiled = True
    running = [i for i, state in enumerate(run.states) if not np.all(fetch(state.best.stopped))]
    images = run.images_per_epoch * sum(len(run.ids[i]) for i in running)
    began, whole = time.perf_counter(), not (run.position.slice or run.position.start)
    sooner = run.config.early_stopping.patience > 0
    with EpochBar(number, run.config.epochs, images, clock.epochs, sooner) as bar:
        for i in running:
            if i < run.position.slice:
                continue
            if i > run.position.slice:
                run.position = Position(i, rows=run.position.rows)
            stopped = np.array(fetch(run.states[i].best.stopped))
            totals = _train_slice(run, i, number, clock, bar, interrupts)
            stopped |= _stop_diverged(run, i, number, totals, stopped)
            scores = _evaluate(run, i, number)
            going = np.flatnonzero(~stopped).tolist()
            run.position.rows += [
                _row(run, number, i, m, totals, scores)
                | {"seconds": round(run.position.seconds / len(going), 3)}
                for m in going
            ]
    rows, run.position = run.position.rows, Position()
    clock.epochs += [time.perf_counter() - began] * whole
    return rows


def _train_slice(
    run: Run, i: int, number: int, clock: Clock, bar: EpochBar, interrupts: NoInterrupts | None
) -> Metrics:
    """Slice `i` to the end of the epoch; -> the summed metrics of its steps."""
    position, step, steps = run.position, run.position.start, run.steps_per_epoch
    clock.lap()
    bar.update()
    status("")
    carry = run.begin_epoch(i, number, position.totals)
    stepper = functools.cache(functools.partial(run.stepper, carry))
    while step < steps:
        if interrupts and interrupts.asked():
            run.states[i] = jax.block_until_ready(carry.state)
            seconds = position.seconds + clock.lap("train")
            run.position = Position(i, step, carry.totals, seconds, position.rows)
            raise Stopped
        count = min(run.chunk, steps - step)
        carry = stepper(count)(carry)
        step += count
        if interrupts:
            interrupts.begun = True
        if bar.add(count * run.config.batch_size * len(run.ids[i])):
            jax.block_until_ready(carry.totals)
            bar.update()
    run.states[i], totals = carry.state, fetch(carry.totals)
    bar.update()
    position.seconds += clock.lap("train")
    return totals


def _stop_diverged(
    run: Run, i: int, number: int, totals: Metrics, stopped: np.ndarray
) -> np.ndarray:
    """Stops the members whose loss or weights are not finite; -> which these are, [S] bool."""
    leaves = jax.tree.leaves(fetch(run.states[i].params))
    finite = [np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]
    diverged = ~(np.isfinite(totals.loss) & np.all(finite, axis=0)) & ~stopped
    for m in np.flatnonzero(diverged):
        step = min(int(totals.finite[m]) + 1, run.steps_per_epoch)
        step += (number - 1) * run.steps_per_epoch
        rate = float(run.members[i].hyper.learning_rate[m]) * float(run.program.schedule(step - 1))
        member = run.ids[i][m]
        run.diverged[member] = {"epoch": number, "step": step, "learning_rate": rate}
        run.stop(member)
    return diverged


def _row(
    run: Run, epoch: int, i: int, m: int, totals: Metrics, scores: dict[str, Metrics]
) -> dict[str, Any]:
    """What metrics.jsonl says of member `m` of slice `i`, but for the seconds."""
    step, members = epoch * run.steps_per_epoch, run.members[i]
    factor = float(run.program.schedule(step - 1))
    row = {
        "epoch": epoch,
        "member": run.ids[i][m],
        "seed": int(members.seed[m]),
        **({"fold": int(members.fold[m])} if run.config.data.folds else {}),
        "step": step,
        "learning_rate": float(str(members.hyper.learning_rate[m])) * factor,  # 0.002, not 0.00200…
        **totals.means(m),
    }
    for split, sums in scores.items():
        row |= {f"{split}_{name}": value for name, value in sums.means(m).items()}
    return row


def _evaluate(run: Run, i: int, epoch: int) -> dict[str, Metrics]:
    """Evaluates slice `i` on validation and on as many training examples; keeps the best weights.

    -> {'train': ..., 'validation': ...}; without validation {}, and the last weights are kept.
    """
    status("evaluating", brief=True)
    weights, members, scores = eval_weights(run.states[i]), run.members[i], {}
    score = [float(epoch)] * len(run.ids[i])  # without validation the last is the best
    if run.data.validation is not None:
        n = run.data.validation.size
        some = run.data.train._replace(rows=run.data.train.rows[..., :n, :])
        for name, split in (("train", some), ("validation", run.data.validation)):
            scores[name], _ = run.evaluate(weights, members, split, answers=False)
        score = [scores["validation"].means(m)["accuracy"] for m in range(len(run.ids[i]))]
    run.track(i, np.asarray(score, jnp.result_type(float)), epoch)
    return scores
