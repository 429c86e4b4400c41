"""One epoch of all members of a run: trained, evaluated, the best weights kept."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from digits_jax.console import EpochBar
from digits_jax.core.step import current
from digits_jax.devices.mesh import fetch
from digits_jax.devices.signals import NoInterrupts
from digits_jax.errors import Stopped
from digits_jax.training.run import Position, Run
from digits_jax.types import Metrics, Slice


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


def epoch(
    run: Run, number: int, clock: Clock, interrupts: NoInterrupts | None = None
) -> list[dict[str, Any]]:
    """Trains and evaluates every member that has not stopped; -> its rows of metrics.jsonl.

    Starts at `run.position`. Diverged members (loss or weights not finite) give no row and are
    noted in `run.diverged`. On an interrupt it saves its progress in `run.position` and raises
    `Stopped`. It waits for the device a few times a second, to draw the bar.
    """
    if not run.ready:
        run.compile()
        clock.lap()
        clock.add({"compile": run.compiling})
        run.ready = True
    config, done, steps = run.config, run.position, run.steps_per_epoch
    running = [i for i, state in enumerate(run.states) if not np.all(fetch(state.best.stopped))]
    images = steps * config.batch_size * sum(len(run.ids[i]) for i in running)
    with EpochBar(f"epoch {number:>2}/{config.epochs}", images) as bar:
        for i in running:
            if i < done.slice:
                continue
            if i > done.slice:
                done = run.position = Position(i, rows=done.rows)
            stopped = np.array(fetch(run.states[i].best.stopped))
            clock.lap()
            own = run.start(i, number, done.totals)
            programs: dict[int, Callable[[Slice], Slice]] = {}
            at, drawn, ahead = done.start, done.start, bar.advance(0)
            while at < steps:
                if interrupts and interrupts.asked():
                    run.states[i] = jax.block_until_ready(own.state)
                    spent = done.seconds + clock.lap("train")
                    run.position = Position(i, at, own.totals, spent, done.rows)
                    raise Stopped
                count = min(run.chunk, steps - at)
                if count not in programs:
                    programs[count] = run.stepper(own, count)
                own = programs[count](own)
                at += count
                if interrupts:
                    interrupts.at_risk = True
                if (at - drawn) * config.batch_size * len(run.ids[i]) > ahead or at == steps:
                    jax.block_until_ready(own.totals)
                    ahead = bar.advance((at - drawn) * config.batch_size * len(run.ids[i]))
                    drawn = at
            run.states[i], totals = own.state, fetch(own.totals)
            done.seconds += clock.lap("train")
            stopped |= _stop_diverged(run, i, number, totals, stopped)
            scores = _evaluate(run, i, number)
            done.rows += [
                _row(run, number, i, m, totals, scores)
                | {"seconds": round(done.seconds / (~stopped).sum(), 3)}
                for m in range(len(run.ids[i]))
                if not stopped[m]
            ]
    run.position = Position()
    return done.rows


def _stop_diverged(
    run: Run, i: int, number: int, totals: Metrics, stopped: np.ndarray
) -> np.ndarray:
    """[S] bool: whose loss or weights are no numbers after this epoch; they are stopped."""
    leaves = jax.tree.leaves(fetch(run.states[i].params))
    sound = [np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves]
    lost = ~(np.isfinite(totals.loss) & np.all(sound, axis=0)) & ~stopped
    for m in np.flatnonzero(lost):
        step = min(int(totals.finite[m]) + 1, run.steps_per_epoch)
        step += (number - 1) * run.steps_per_epoch
        rate = float(run.members[i].hyper.learning_rate[m]) * float(run.program.schedule(step - 1))
        member = run.ids[i][m]
        run.diverged[member] = {"epoch": number, "step": step, "learning_rate": rate}
        run.stop(member)
    return lost


def _row(
    run: Run, epoch: int, i: int, m: int, totals: Metrics, scores: dict[str, Metrics]
) -> dict[str, Any]:
    """What metrics.jsonl says of member `m` of slice `i`, but for the seconds."""
    step, members = epoch * run.steps_per_epoch, run.members[i]
    factor = float(run.program.schedule(step - 1))
    return {
        "epoch": epoch,
        "member": run.ids[i][m],
        "seed": int(members.seed[m]),
        **({"fold": int(members.fold[m])} if run.config.data.folds else {}),
        "step": step,
        "learning_rate": float(str(members.hyper.learning_rate[m])) * factor,  # 0.002, not 0.00200…
        **totals.means(m),
        **{
            f"{split}_{name}": value
            for split, sums in scores.items()
            for name, value in sums.means(m).items()
        },
    }


def _evaluate(run: Run, i: int, epoch: int) -> dict[str, Metrics]:
    """Evaluates slice `i` on validation and on as many training examples; keeps the best weights.

    -> {'train': ..., 'validation': ...}; without validation nothing, and the last weights are kept.
    """
    weights, members = current(run.states[i]), run.members[i]
    if run.data.validation is None:  # the last is the best
        run.track(i, np.full(len(run.ids[i]), epoch, jnp.result_type(float)), epoch)
        return {}
    n = run.data.validation.size
    some = run.data.train._replace(rows=run.data.train.rows[..., :n, :])
    scores = {
        "train": run.evaluate(weights, members, some, answers=False)[0],
        "validation": run.evaluate(weights, members, run.data.validation, answers=False)[0],
    }
    score = [scores["validation"].means(m)["accuracy"] for m in range(len(run.ids[i]))]
    run.track(i, np.asarray(score, jnp.result_type(float)), epoch)
    return scores
