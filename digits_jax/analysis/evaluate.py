"""What a run says of its test set or of a user's own images; afterwards, of more pairs, or what
each epoch said.

What they and the other modes write goes into the run's folder, or into another one: `out`.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from ml_collections import ConfigDict
from rich.progress import track
from rich.text import Text

from digits_jax import files
from digits_jax.console import console
from digits_jax.data import dataset, pictures
from digits_jax.data.recipes import draw_pairs, generator
from digits_jax.errors import UserError
from digits_jax.report import artifacts, figures, stats, tables
from digits_jax.training.predictor import Trained, epoch_file

DRAWS = 25  # of pairs, each as many as the test split has
SUMMARY = "summary.json"
_RUN = ("config", "members", "date", "seconds")  # of a summary: which run it is of
_PATIENCE = 10  # seconds for others that add to the summary; training holds the lock for longer


def open_run(config: ConfigDict, workdir: str | Path) -> Trained:
    """The run of `config` that lies in `workdir`, its data in the folders of `config`.

    Of `config` only the name and the folders count: what was trained is recorded in the workdir.
    Raises UserError as `Trained` does, and where the run is another config's.
    """
    workdir = Path(workdir)
    trained = Trained(workdir)
    if trained.config.prune.run and trained.config.population.size > 1:
        raise UserError(
            f"{workdir} holds a network pruned to several fractions; prune it to one, for example "
            '--config.prune.fractions="(0.9,)", to use it'
        )
    if trained.config.name != config.name:
        raise UserError(f"{workdir} holds a run of {trained.config.name}, not of {config.name}")
    trained.config.data.update(raw_dir=config.data.raw_dir, cache_dir=config.data.cache_dir)
    return trained


def writable(workdir: str | Path, out: str | Path | None, *names: str) -> Path:
    """The folder that a mode writes into: `out`, which is made, else `workdir`.

    To be called before the work: raises UserError where it, or what it holds of `names`, cannot be
    written.
    """
    path = folder = Path(out or workdir)
    if (folder / "config.json").exists() and folder.resolve() != Path(workdir).resolve():
        raise UserError(f"--out={out} holds another run; choose another folder")
    way = "choose another --out" if out else "--out=DIR has this mode write into another folder"
    try:
        if out:
            folder.mkdir(parents=True, exist_ok=True)
        for path in (folder, *(folder / name for name in names)):
            if path.is_dir():
                tempfile.TemporaryFile(dir=path).close()
            elif path.exists():
                path.open("ab").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); {way}") from None
    return folder


def evaluate(
    config: ConfigDict,
    workdir: str | Path,
    data: str | None,
    ink: str,
    out: str | Path | None = None,
) -> None:
    """Writes predictions.csv, of the test set or of the user's `data`, into `workdir` or `out`.

    With several members the predictions are those of their averaged probabilities; what is written
    is calibrated by the temperature that fitted the validation split. `config` counts
    as it does in `open_run`.
    """
    trained = open_run(config, workdir)
    path = writable(workdir, out, "predictions.csv") / "predictions.csv"
    names, note = None, ""
    if data:
        images, labels, names, unread, notes = pictures.read(data, ink, trained.recipe)
        for line in pictures.told(unread):
            console.print(f"not read: {line}")
        for line in notes:
            console.print(f"{data}: {line}")
    else:
        loaded = dataset.load(trained.config.data)
        images, labels = dataset.examples(loaded.test, trained.recipe)
        note = artifacts.drawn(loaded.test_source)
    log_p = trained.predict(images)
    said = {
        head: np.log(stats.tempered(values, trained.temperature[-1]))
        for head, values in artifacts.averaged(log_p).items()
    }
    artifacts.write_predictions(path, said, labels, names)
    if labels is not None:
        console.print(
            figures.noted(artifacts.headline(artifacts.test_metrics(labels, log_p)), note)
        )
    some = f"{len(images):,} image{'s' if len(images) > 1 else ''}"
    of = sorted(set(trained.epochs))
    epochs = f"epoch{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}"
    console.print(Text(f"{some} under the weights of {epochs}; {path}"))


class Addition:
    """What a mode adds to the summary.json of a finished run, perhaps while others add theirs.

    summary: as it was before the work; folder: `workdir`, or `out`, which gets a summary.json of
    its own. Raises UserError where the run has not reported its accuracy on `split`, and says what
    comes `later`; where `folder` cannot be written, as `writable` does; and where `out` holds the
    summary of another run.
    """

    def __init__(
        self,
        workdir: str | Path,
        out: str | Path | None,
        later: str,
        split: str = "test",
        names: tuple[str, ...] = (),
    ):
        self._path = Path(workdir) / SUMMARY
        self.summary = _read(self._path)
        if not self.summary.get(split):
            raise UserError(
                f"{workdir}: no {split} accuracy is reported there yet; {later} afterwards"
            )
        self.folder = writable(workdir, out, *names)
        self._there()

    def write(self, name: str, found: dict[str, Any]) -> None:
        """Reads the summary again, adds `found` to it as `name`, and writes it, all under a lock.

        Raises UserError where the run is being trained again, or was.
        """
        with _alone(self.folder):
            now = _read(self._path)
            if not self._same(now):
                raise UserError(
                    f"{self._path.parent} was trained again meanwhile; what was found is of the "
                    "run before and is not added: the same command looks at the new one"
                )
            summary = now | self._there() | {name: found}
            files.write_json(self.folder / SUMMARY, summary)

    def _same(self, other: dict[str, Any]) -> bool:
        return bool(other) and all(other.get(field) == self.summary.get(field) for field in _RUN)

    def _there(self) -> dict[str, Any]:
        """The summary that is to be written over; {} where there is none yet."""
        path = self.folder / SUMMARY
        if not path.exists():
            return {}
        there = _read(path)
        if not self._same(there):
            raise UserError(
                f"{path} is not of the run in {self._path.parent}; choose another --out"
            )
        return there


def _read(path: Path) -> dict[str, Any]:
    """A summary.json; {} where there is none, or a damaged one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(summary, dict):
            return summary
    return {}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing the summary in `folder`, by the lock of training."""
    lock = filelock.FileLock(folder / ".lock", timeout=_PATIENCE)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except filelock.Timeout:
            raise UserError(
                f"another process is training in {folder}; what was found is of the run before and "
                "is not added: the same command, when that is through, looks at the new one"
            ) from None
        except OSError:  # another user's lock, or a disk without locks: others are rare
            pass
        yield


def best_test_epoch(config: ConfigDict, workdir: str | Path, out: str | Path | None = None) -> None:
    """Adds `best_test_epoch` to summary.json: what the best epoch on the test split would have had.

    That is how the field often quotes a run; nothing is chosen by it. Reads the epochs that a
    finished run kept with `config.keep_epochs`; an early one wins a tie. `config` counts as it does
    in `open_run`, `out` as in `Addition`. Raises UserError where there are none, or where the run
    has not reported its test accuracy yet.
    """
    workdir = Path(workdir)
    trained = open_run(config, workdir)
    addition = Addition(workdir, out, "its epochs are compared")
    summary = addition.summary
    honest = summary["mean"]
    rows = artifacts.read_rows(workdir / "metrics.jsonl")
    test = dataset.load(trained.config.data).test
    images, labels = dataset.examples(test, trained.recipe)
    best: dict[int, dict[str, Any]] = {}  # a member that diverged at once has no epoch
    for epoch in sorted({row["epoch"] for row in rows}):
        kept = epoch_file(workdir, epoch)
        if not kept.exists():
            raise UserError(f"{kept} is missing: it takes a run with --config.keep_epochs=True")
        trained.read(kept)
        figures = artifacts.test_metrics(labels, trained.predict(images))["members"]
        for member in (row["member"] for row in rows if row["epoch"] == epoch):
            if member not in best or figures[member]["test"] > best[member]["test"]:
                seed = summary["members"][member]["seed"]
                best[member] = {"seed": seed, "epoch": epoch, **figures[member]}
    members = [best[member] for member in sorted(best)]
    flattered = stats.spread([b["test"] for b in members])
    addition.write("best_test_epoch", flattered | {"members": members})
    console.print(
        f"best test epoch {tables.percent(flattered['mean'], flattered['std'])} %, honestly "
        f"{tables.percent(honest)} %: flattered by {tables.percent(flattered['mean'] - honest)}"
    )


def more_pairs(config: ConfigDict, workdir: str | Path, out: str | Path | None = None) -> None:
    """Adds `pairs` to summary.json: the accuracy of many more pairs of the test's digits.

    A test split of 4,000 pairs is one draw of 100 million, and its luck is larger than the spread
    of the seeds; DRAWS further ones, of the stream "more" of `data.seed`, tell the two apart. Where
    `report_test` is off, they are pairs of the validation's digits. `config` counts as it does in
    `open_run`, `out` as in `Addition`. Writes `split`, `draws`, `examples`, `mean`, `std`,
    `interval`, `heads`, `all_heads` and `ensemble`, as summary.json has them of the test split, and
    `draw_std`, the standard deviation of a single draw's mean. Raises UserError where examples are
    single digits, of folds, where no digits are held out, or where the run has not reported its
    accuracy yet.
    """
    trained = open_run(config, workdir)
    data = trained.config.data
    if trained.recipe.digits == 1:
        raise UserError(
            f"--mode=more-pairs is for pairs of digits; {data.dataset} tests every digit once"
        )
    name = "test" if trained.config.report_test else "validation"
    if data.folds:
        raise UserError("--mode=more-pairs goes without data.folds, whose members share digits")
    if name == "validation" and not data.validation:
        raise UserError(
            "--mode=more-pairs of a run with report_test=False needs validation digits: train with "
            "--config.data.validation=0.1"
        )
    addition = Addition(workdir, out, "more pairs are drawn", name)
    split = getattr(dataset.load(data), name)
    rng, pool = generator(data.seed, "more"), np.asarray(split.pool)
    draws = []
    for _ in track(
        range(DRAWS), "pairs", console=console, transient=True, disable=not console.is_terminal
    ):
        rows = pool[draw_pairs(rng, split.size, len(pool), trained.recipe.digits)]
        images, labels = dataset.examples(split._replace(rows=rows), trained.recipe)
        draws.append(artifacts.test_metrics(labels, trained.predict(images)))
    accuracy = np.mean([[member["test"] for member in draw["members"]] for draw in draws], axis=0)
    mean = stats.means([draw["test"] for draw in draws])
    found = {
        "split": name,
        "draws": DRAWS,
        "examples": DRAWS * split.size,
        **stats.spread(accuracy),
        "heads": mean["heads"],
        "all_heads": mean["all_heads"],
        "draw_std": np.std([draw["test"]["accuracy"] for draw in draws], ddof=1),
    }
    if len(accuracy) > 1:
        found["ensemble"] = np.mean([draw["ensemble"] for draw in draws])
    addition.write("pairs", found)
    console.print(
        f"{found['examples']:,} pairs of {name} digits: "
        f"{tables.percent(found['mean'], found['std'])} %, where the split's {split.size:,} said "
        f"{tables.percent(addition.summary[name]['accuracy'])} % (a draw has ± "
        f"{tables.percent(found['draw_std'])} by luck)"
    )
