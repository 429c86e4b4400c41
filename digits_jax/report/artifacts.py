"""The files of a run: summary.json, metrics.jsonl, CSV tables, event files, pictures.

Predictions on the test split are labels {head: [N] integers} and log-probabilities
{head: [P, N, C] float32} of P members.
"""

import csv
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from digits_jax import settings
from digits_jax.console import percent
from digits_jax.errors import UserError
from digits_jax.files import json_lines, plain, replacing, write_json, write_text
from digits_jax.report import figures, stats

Row = dict[str, Any]
Heads = dict[str, np.ndarray]
Names = Mapping[str, Sequence[str]]  # {head: the names of its classes}


def read_rows(path: str | os.PathLike) -> list[Row]:
    """The rows of metrics.jsonl, [] without the file; an incomplete last line is left out.

    Raises UserError for a damaged line before the last.
    """
    path = Path(path)
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
                raise ValueError
            rows.append(row)
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is not a row of JSON; --config.resume=False starts the "
                    "run over"
                ) from None
    return rows


def rewind(path: str | os.PathLike, epoch: int) -> list[Row]:
    """Deletes the rows after `epoch` and an incomplete last line; returns the rows that stay."""
    rows = [row for row in read_rows(path) if row["epoch"] <= epoch]
    write_text(path, json_lines(rows))
    return rows


class EventWriter(AbstractContextManager):
    """TensorBoard's event files: `workdir/tensorboard`, one sub-run per member if several.

    Replaces older ones by `rows` (those of metrics.jsonl), so that no row is there twice after a
    resume. The scalars `accuracy/train`, `accuracy/validation`, `accuracy/as_trained`, `loss/...`
    and `learning_rate` are logged by training step.
    """

    def __init__(self, workdir: str | os.PathLike, rows: Sequence[Row] = ()) -> None:
        self._folder = Path(workdir) / "tensorboard"
        self._writers: dict[int, Any] = {}
        shutil.rmtree(self._folder, ignore_errors=True)
        self.append(rows)

    def append(self, rows: Sequence[Row]) -> None:
        """Writes rows and flushes; the first rows must include every member."""
        # EventsWriter, unlike SummaryWriter, takes no thread and no queue per member.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if not self._writers:
            members = sorted({row["member"] for row in rows})
            for member in members:
                several = f"member_{member:0{len(str(members[-1]))}d}" if len(members) > 1 else ""
                (self._folder / several).mkdir(parents=True, exist_ok=True)
                self._writers[member] = EventsWriter(str(self._folder / several / "events"))
        for row in rows:
            scalars = {"learning_rate": row.get("learning_rate")}
            for name in ("accuracy", "loss"):
                scalars[f"{name}/as_trained"] = row.get(name)
                scalars[f"{name}/train"] = row.get(f"train_{name}")
                scalars[f"{name}/validation"] = row.get(f"validation_{name}")
            values = [
                Summary.Value(tag=tag, simple_value=x)
                for tag, x in scalars.items()
                if x is not None
            ]
            event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
            self._writers[row["member"]].write_event(event)
        for writer in self._writers.values():
            writer.flush()

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()


def _pooled(
    labels: Heads, log_probabilities: Heads, names: Names
) -> list[tuple[str, str, int, int]]:
    """(head, class, correct, total) of every class, counted over all members."""
    counts = []
    for head, truth in labels.items():
        members, _, classes = log_probabilities[head].shape
        right = (log_probabilities[head].argmax(-1) == truth).sum(0)
        correct = np.bincount(truth, weights=right, minlength=classes).astype(int)
        total = members * np.bincount(truth, minlength=classes)
        counts += [
            (head, name, int(correct[c]), int(total[c])) for c, name in enumerate(names[head])
        ]
    return counts


def mean_probabilities(log_probabilities: Heads) -> Heads:
    """{head: [N, C] float64}: the probabilities averaged over the members."""
    means = {}
    for head, values in log_probabilities.items():
        members = (np.exp(member, dtype=np.float64) for member in values)  # one at a time in memory
        means[head] = sum(members, np.zeros(values.shape[1:])) / len(values)
    return means


def averaged(log_probabilities: Heads) -> Heads:
    """{head: [N, C] float64}: the logarithms of `mean_probabilities`, none infinite."""
    tiny = np.finfo(np.float64).tiny
    means = mean_probabilities(log_probabilities)
    return {head: np.log(np.maximum(p, tiny)) for head, p in means.items()}


def test_metrics(labels: Heads, log_probabilities: Heads, names: Names) -> dict[str, Any]:
    """The test split's part of summary.json.

    labels: {head: [N]}; log_probabilities: {head: [P, N, C]}. Returns `test` (means over the
    members), `members` (a list of {"test", "all_heads", "heads"}), `mean` and `std` (n-1; None of
    one member) of their accuracies, `interval` (half of the 95 % interval of the mean), `ensemble`
    (only with several members: the accuracy of the averaged probabilities), and `hardest`: the ten
    classes of lowest accuracy, pooled over the members. Accuracy is the mean over the heads;
    `all_heads` is the share of examples with every head right.
    """
    right = {head: log_probabilities[head].argmax(-1) == labels[head] for head in labels}
    heads = {head: hits.mean(1) for head, hits in right.items()}
    accuracy = np.mean(list(heads.values()), axis=0)
    all_heads = np.all(list(right.values()), axis=0).mean(1)
    picked = [
        np.take_along_axis(log_probabilities[head], labels[head][None, :, None], axis=2)
        for head in labels
    ]
    counts = [count for count in _pooled(labels, log_probabilities, names) if count[3]]
    result = {
        "test": {
            "examples": next(iter(right.values())).shape[1],
            "loss": -np.mean(picked, dtype=np.float64),
            "accuracy": accuracy.mean(),
            "heads": {head: values.mean() for head, values in heads.items()},
            "all_heads": all_heads.mean(),
        },
        "members": [
            {"test": x, "all_heads": a, "heads": dict(zip(heads, by_head, strict=True))}
            for x, a, *by_head in zip(accuracy, all_heads, *heads.values(), strict=True)
        ],
        **stats.spread(accuracy),
        "hardest": [
            {
                "class": f"{head} {name}" if len(labels) > 1 else name,
                "correct": correct,
                "total": total,
                "accuracy": correct / total,
            }
            for head, name, correct, total in sorted(counts, key=lambda c: c[2] / c[3])[:10]
        ],
    }
    if len(accuracy) > 1:
        means = mean_probabilities(log_probabilities)
        result["ensemble"] = np.mean([means[h].argmax(-1) == labels[h] for h in labels])
    return plain(result)


def fit_temperatures(labels: Heads, log_probabilities: Heads) -> np.ndarray:
    """[P + 1]: the temperature of each member and, last, of their averaged probabilities.

    Of the validation split. labels: {head: [N]}; or {head: [P, N]} where each member has its own
    examples, and the last temperature is the mean of the others.
    """
    fitted = []
    for m in range(len(next(iter(log_probabilities.values())))):
        own = {head: y if y.ndim == 1 else y[m] for head, y in labels.items()}
        fitted.append(stats.fit_temperature({h: log_probabilities[h][m] for h in own}, own))
    if next(iter(labels.values())).ndim == 2:
        return np.asarray([*fitted, np.mean(fitted)])
    return np.asarray([*fitted, stats.fit_temperature(averaged(log_probabilities), labels)])


def _confidence(labels: Heads, log_p: Heads, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """{head: [N, C]} -> the largest probabilities, heads one after another, and which are right."""
    p = {head: stats.tempered(log_p[head], temperature) for head in labels}
    confidence = np.concatenate([p[head].max(-1) for head in labels])
    return confidence, np.concatenate([p[head].argmax(-1) == labels[head] for head in labels])


def calibration(
    labels: Heads, log_probabilities: Heads, temperatures: np.ndarray
) -> tuple[dict[str, Any], dict[str, tuple[stats.Reliability, stats.Reliability]]]:
    """-> (`calibration` of the summary, {name: reliability before and after scaling}).

    labels: {head: [N]}; log_probabilities: {head: [P, N, C]}, of the test split; temperatures:
    [P + 1]. The members' calibration error, a fraction, is their mean; their diagram pools them.
    """
    members = len(temperatures) - 1
    found: dict[str, Any] = {"temperature": temperatures[:-1].mean()}
    pooled = []
    for name, scales in (("ece", np.ones(members)), ("ece_tempered", temperatures[:-1])):
        parts = [
            _confidence(labels, {head: log_probabilities[head][m] for head in labels}, scale)
            for m, scale in enumerate(scales)
        ]
        found[name] = np.mean([stats.reliability(*part).error for part in parts])
        pooled.append(stats.reliability(*map(np.concatenate, zip(*parts, strict=True))))
    diagrams = {"members" if members > 1 else "the network": (pooled[0], pooled[1])}
    if members > 1:
        ensemble, scale = averaged(log_probabilities), temperatures[-1]
        raw, scaled = (stats.reliability(*_confidence(labels, ensemble, t)) for t in (1.0, scale))
        diagrams["ensemble"] = (raw, scaled)
        errors = {"ece": raw.error, "ece_tempered": scaled.error}
        found["ensemble"] = {"temperature": scale} | errors
    return plain(found), diagrams


def headline(tested: dict[str, Any]) -> str:
    """`test_metrics` in one line: '98.12 ± 0.05 % over 3 members (95 % interval ± 0.12), ...'.

    Of two members both are given: '98.07 and 98.17 % over 2 members, ...'.
    """
    members, heads = len(tested["members"]), tested["test"]["heads"]
    text = percent(tested["mean"], tested["std"], seeds=members)
    if members > 1:
        text += f" over {members} members"
        if tested["interval"] is not None and members > 2:
            text += f" (95 % interval ± {percent(tested['interval'], unit='')})"
        text += f", ensemble {percent(tested['ensemble'])}"
    if len(heads) > 1:
        text += f" ({', '.join(f'{head} {percent(x)}' for head, x in heads.items())})"
    if diverged := sum("diverged" in member for member in tested["members"]):
        text += f"; {diverged} of the members diverged and count as they were before"
    return text


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table as CSV, whole or not at all."""
    with replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def per_class(
    path: str | os.PathLike, labels: Heads, log_probabilities: Heads, names: Names
) -> None:
    """Writes per_class.csv: head, class, correct, total, accuracy; counts pooled over members.

    The accuracy of a class that does not occur is left empty.
    """
    counts = _pooled(labels, log_probabilities, names)
    rows = [(*row, f"{row[2] / row[3]:.6f}" if row[3] else "") for row in counts]
    write_csv(path, ("head", "class", "correct", "total", "accuracy"), rows)


def write_predictions(
    path: str | os.PathLike,
    log_probabilities: Heads,
    classes: Names,
    labels: Heads | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Writes predictions.csv: a row per example, and per head the class and its probability.

    log_probabilities: {head: [N, C]} of one model; names: of the images. Columns: index, image
    (where `names` are given), then for each head HEAD, HEAD_probability and, where `labels` are
    given, HEAD_label and HEAD_correct (0 or 1), both empty for a label of -1.
    """
    n = len(next(iter(log_probabilities.values())))
    columns: dict[str, Sequence] = {"index": range(n)}
    if names is not None:
        columns["image"] = names
    for head, values in log_probabilities.items():
        predicted = values.argmax(-1)
        columns[head] = [classes[head][c] for c in predicted]
        columns[f"{head}_probability"] = [f"{np.exp(p):.6f}" for p in values.max(-1)]
        if labels is not None:
            known = labels[head] >= 0
            columns[f"{head}_label"] = [classes[head][c] if c >= 0 else "" for c in labels[head]]
            correct = (predicted == labels[head]).astype(int).tolist()
            columns[f"{head}_correct"] = [
                x if k else "" for x, k in zip(correct, known, strict=True)
            ]
    write_csv(path, list(columns), zip(*columns.values(), strict=True))


def write(
    workdir: str | os.PathLike,
    summary: dict[str, Any],
    rows: Sequence[Row],
    classes: Names,
    labels: Heads | None = None,
    log_probabilities: Heads | None = None,
    images: np.ndarray | None = None,
    temperatures: np.ndarray | None = None,
) -> dict[str, Any]:
    """Writes summary.json, curves.png and, of the test split, per_class.csv and three pictures.

    summary: what training knows, with `members` = [{"seed", "best_epoch", "validation"}, ...];
    rows: of metrics.jsonl. Where the test split was read: labels {head: [N]}, log_probabilities
    {head: [P, N, C]}, images [N, H, W] uint8, temperatures [P + 1]. Then `test_metrics` is added to
    the summary, confusion.png pools all members, and errors.png shows the mistakes of their
    averaged probabilities. Returns the summary as written.
    """
    workdir = Path(workdir)
    note, test_note = (
        source_note(summary.get("data", {}).get(key)) for key in ("source", "test_source")
    )
    if rows:
        prune = summary.get("config", {}).get("prune", {})
        pruned = prune["fractions"] if prune.get("run") else ()
        figures.curves(rows, workdir / "curves.png", note, pruned)
    if labels is not None and log_probabilities is not None and images is not None:
        tested = test_metrics(labels, log_probabilities, classes)
        members = zip(summary["members"], tested["members"], strict=True)
        summary = summary | tested | {"members": [known | test for known, test in members]}
        per_class(workdir / "per_class.csv", labels, log_probabilities, classes)
        predicted = {head: p.argmax(-1) for head, p in log_probabilities.items()}
        pairs = {h: (np.broadcast_to(labels[h], p.shape), p) for h, p in predicted.items()}
        figures.confusion(pairs, classes, workdir / "confusion.png", test_note)
        means = mean_probabilities(log_probabilities)
        pairs = {head: (labels[head], p) for head, p in means.items()}
        figures.errors(images, pairs, classes, workdir / "errors.png", note=test_note)
        if summary.get("config", {}).get("data", {}).get("folds"):
            summary["interval"] = None  # folds share digits: Student's t would be too narrow
        if temperatures is not None:
            summary["calibration"], diagrams = calibration(labels, log_probabilities, temperatures)
            figures.reliability(diagrams, workdir / "calibration.png", test_note)
    summary = plain(summary)
    write_json(workdir / "summary.json", summary)
    return summary


def source_note(source: str | None) -> str:
    """What a picture's title says of the data's source; "" of MNIST."""
    return "drawn digits" if source == "drawn" else settings.source_label(source or "mnist")
