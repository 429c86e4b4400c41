"""The tables of the READMEs and two pictures of all runs, from the files of the runs.

`python -m digits_jax.report.results [results/]` rewrites them from the summary.json and
metrics.jsonl files of that folder.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from digits_jax import files
from digits_jax.errors import UserError
from digits_jax.report import artifacts, figures, stats
from digits_jax.report.tables import LEFT, RIGHT, markdown, percent

Summary = dict[str, Any]

INTRO = """# Results

Each folder is the run of one config, as `launch.py` left it. Accuracies are in percent of all test
examples; ± is the standard deviation over the seeds, 95 % the interval of their mean (below three
seeds, the accuracy of each). Quoted is
what the reproduced system says of itself (LeNet-5's, the MNIST-100 MLP's and ResNet-50's: about).
The best test epoch is what a run would have to say if the test split had chosen its epoch, as the
field often lets it, and in brackets by how much that flatters. Ensemble is the accuracy of the
members' averaged probabilities, gap is train minus validation accuracy, minutes are those of all
seeds together. `python -m digits_jax.report.results` writes this table from the summaries, and
draws the pictures.

![Accuracy and parameters](accuracy.png)

![Learning curves](curves.png)

"""
DAMAGED = """**Damaged digits**: shifted by whole pixels, turned by degrees, with Gaussian noise,
blurred, with thicker and thinner strokes (px), each at its strongest level; the mean over all
levels of all of them; and the calibration error of the digits as they are, in 15 bins, after
temperature scaling. By `--mode=robustness`; a run's robustness.png shows all levels."""
PAIRS = """**More pairs**: the test's pairs are one draw of very many. Beside them, 25 such draws
together: what the networks are worth on pairs of the test digits, and ±, by how much one draw
deviates from that by luck. By `--mode=more-pairs`."""
BEGIN, END = "<!-- table -->", "<!-- /table -->"
SHOWN = {  # the rows of the project's README, and what they are
    "mnist100": "two digits side by side, the first command",
    "mnist100-tower": "the same by a small residual network",
    "compact": "one digit",
    "records-p2000": "one digit, the fewest parameters above 99 %",
    "records-cnn": "one digit, the best single network",
    "fast": "one digit, after one epoch",
}


def _data(summary: Summary) -> str:
    data = summary["data"]
    source, test = data["source"], data["test_source"]
    if extra := data["drawn_extra"]:
        return f"{data['dataset']} (and {extra:,} drawn)"
    if source == test:
        return data["dataset"] + ("" if source == "mnist" else f" ({source})")
    return f"{data['dataset']} ({source}, tested on {test})"


def _tests(summary: Summary) -> list[float]:
    """The test accuracy of each member; [] where the test split was not read."""
    return [member["test"] for member in summary["members"] if "test" in member]


def _accuracy(found: Summary, seeds: int) -> str:
    return percent(found.get("mean"), found.get("std"), seeds=seeds)


def _half(summary: Summary) -> float | None:
    """Of the 95 % interval; None below three seeds, of which it would say little."""
    tests = _tests(summary)
    return stats.half_width(tests) if len(tests) > 2 else None


def _interval(summary: Summary) -> str:
    if summary["config"]["data"]["folds"]:
        return ""  # folds share digits: Student's t would be too narrow
    half = _half(summary)
    return "" if half is None else f"± {percent(half)}"


def _seeds(summary: Summary) -> str:
    diverged = sum("diverged" in member for member in summary["members"])
    return f"{len(summary['members'])}" + (f" ({diverged} diverged)" if diverged else "")


def _over_mean(summary: Summary, value: float | None) -> str:
    """'99.70 (+0.21)': a value, and its difference from the mean."""
    if value is None:
        return ""
    return f"{percent(value)} ({100 * (value - summary['mean']):+.2f})"


def _heads(test: Summary | None) -> str:
    """'upper 80.00, lower 70.00'; "" of a single head. test: a dict with `heads`."""
    heads = (test or {}).get("heads", {})
    return ", ".join(f"{head} {percent(x)}" for head, x in heads.items()) if len(heads) > 1 else ""


def _gap(summary: Summary) -> str:
    train, validation = summary.get("train"), summary.get("validation")
    return percent(train["accuracy"] - validation["accuracy"] if train and validation else None)


_COLUMNS: dict[str, tuple[str, Callable[[Summary], str]]] = {
    "data": (LEFT, _data),
    "parameters": (RIGHT, lambda s: f"{s['model']['parameters']:,}"),
    "quoted": (RIGHT, lambda s: " / ".join(f"{x:.2f}" for x in s["config"]["quoted"])),
    "test accuracy": (RIGHT, lambda s: _accuracy(s, len(s["members"]))),
    "95 %": (RIGHT, _interval),
    "seeds": (RIGHT, _seeds),
    "best test epoch": (RIGHT, lambda s: _over_mean(s, s.get("best_test_epoch", {}).get("mean"))),
    "heads": (LEFT, lambda s: _heads(s.get("test"))),
    "ensemble": (RIGHT, lambda s: _over_mean(s, s.get("ensemble"))),
    "gap": (RIGHT, _gap),
    "epochs": (RIGHT, lambda s: str(s["epochs"])),
    "minutes": (RIGHT, lambda s: f"{s['seconds']['total'] / 60:.1f}"),
    "device": (LEFT, lambda s: str(s["device"])),
    "date": (LEFT, lambda s: s["date"]),
}
_SHORT = ("parameters", "test accuracy", "seeds", "ensemble")  # the columns beside SHOWN


def table(summaries: dict[str, Summary]) -> str:
    """A markdown table with a row per {run: summary}, in the order given."""
    rows = [
        [f"[{run}]({run}/)", *(content(summary) for _, content in _COLUMNS.values())]
        for run, summary in summaries.items()
    ]
    return markdown(["run", *_COLUMNS], rows, [LEFT, *(align for align, _ in _COLUMNS.values())])


def excerpt(summaries: dict[str, Summary], folder: str) -> str:
    """A markdown table of the runs that are SHOWN, linked to `folder`."""
    columns = [_COLUMNS[name] for name in _SHORT]
    rows = [
        [f"[{run}]({folder}/{run}/)", what, *(content(summaries[run]) for _, content in columns)]
        for run, what in SHOWN.items()
        if run in summaries
    ]
    return markdown(["run", "what", *_SHORT], rows, [LEFT, LEFT, *(align for align, _ in columns)])


def damaged(summaries: dict[str, Summary]) -> str:
    """A markdown table of the runs with results of --mode=robustness, "" where there are none.

    The accuracy at the strongest level of each corruption, the mean over all levels of all of them,
    and the expected calibration error of the undamaged digits, after temperature scaling.
    """
    tested = {run: s for run, s in summaries.items() if "robustness" in s}
    if not tested:
        return ""
    corruptions = (item for s in tested.values() for item in s["robustness"].items())
    strongest = list(dict.fromkeys((name, list(levels)[-1]) for name, levels in corruptions))
    rows = []
    for run, summary in tested.items():
        found = summary["robustness"]
        means = [x["mean"] for levels in found.values() for x in levels.values()]
        cells = [found.get(name, {}).get(level, {}).get("mean") for name, level in strongest]
        ece = summary.get("calibration", {}).get("ece_tempered")
        cells = [summary["mean"], *cells, sum(means) / len(means), ece]
        rows.append([f"[{run}]({run}/)", *map(percent, cells)])
    header = ["run", "as they are", *(f"{name} {level}" for name, level in strongest), "all", "ECE"]
    return f"\n\n{DAMAGED}\n\n{markdown(header, rows, [LEFT] + [RIGHT] * (len(header) - 1))}"


def more_pairs(summaries: dict[str, Summary]) -> str:
    """A markdown table of the runs with results of --mode=more-pairs, "" where there are none.

    Accuracy, that of the heads and of examples with every head right: of the test's pairs, then of
    the further ones.
    """
    rows = []
    for run, summary in summaries.items():
        found = summary.get("pairs", {})
        if found.get("split") != "test":
            continue
        cells: list[str] = []
        for whole, test in ((summary, summary["test"]), (found, found)):
            both = percent(test["all_heads"]) if len(test["heads"]) > 1 else ""
            cells += [_accuracy(whole, len(summary["members"])), _heads(test), both]
        cells.insert(3, f"{found['examples']:,}")
        ensemble = percent(found["ensemble"]) if "ensemble" in found else ""
        rows.append([f"[{run}]({run}/)", *cells, ensemble, f"± {percent(found['draw_std'])}"])
    if not rows:
        return ""
    accuracies = ("accuracy", "heads", "both")
    header = ["run", *accuracies, "pairs", *accuracies, "ensemble", "luck"]
    align = [LEFT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT]
    return f"\n\n{PAIRS}\n\n{markdown(header, rows, align)}"


def read(results: Path) -> dict[str, Summary]:
    """{run: summary} of all summary.json below, sorted by path; UserError for a damaged one."""
    paths = {p.parent.relative_to(results).as_posix(): p for p in results.rglob("summary.json")}
    if not paths:
        raise UserError(f"{results}: no summary.json in it or below it")
    summaries = {}
    for run, path in sorted(paths.items()):
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
            if summary["config"]["prune"]["run"]:
                continue  # its members are no seeds of one network
            summaries[run] = summary
            for make in (table, damaged, more_pairs):
                make({run: summary})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not the summary of a run ({error!r})") from None
    return summaries


def reported(summaries: dict[str, Summary]) -> dict[str, Summary]:
    """The runs of the configs, without those of searches, which lie in subfolders."""
    return {run: summary for run, summary in summaries.items() if "/" not in run}


def tables(results: Path, summaries: dict[str, Summary]) -> dict[Path, str]:
    """{README.md: its tables} of the folder, and of the folder above, which has an excerpt."""
    folder = results.absolute()
    return {
        results / "README.md": table(summaries) + more_pairs(summaries) + damaged(summaries),
        folder.parent / "README.md": excerpt(summaries, folder.name),
    }


def points(summaries: dict[str, Summary]) -> list[dict[str, Any]]:
    """What `figures.frontier` draws of runs whose test split was read."""
    return [
        {
            "run": run,
            "dataset": summary["data"]["dataset"],
            "parameters": summary["model"]["parameters"],
            "mean": summary["mean"],
            "half": _half(summary),
            "quoted": [x / 100 for x in summary["config"]["quoted"]],
        }
        for run, summary in summaries.items()
    ]


def write(results: str | os.PathLike) -> None:
    """Rewrites the tables and the pictures; text outside the markers of a table stays.

    The README.md above the folder is changed only where it has the markers. Raises UserError where
    there is no summary, or a damaged one.
    """
    results = Path(results)
    summaries = read(results)
    for readme, rows in tables(results, summaries).items():
        text = readme.read_text(encoding="utf-8") if readme.exists() else INTRO
        if BEGIN not in text or END not in text:
            if readme.parent != results:
                continue
            text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
        before, after = text.split(BEGIN, 1)[0], text.split(END, 1)[1]
        files.write_text(readme, f"{before}{BEGIN}\n{rows}\n{END}{after}")
    shown = {run: summary for run, summary in reported(summaries).items() if _tests(summary)}
    if shown:
        figures.frontier(points(shown), results / "accuracy.png")
    logs = {run: artifacts.read_rows(results / run / "metrics.jsonl") for run in shown}
    curves = {run: rows for run, rows in logs.items() if any(row["epoch"] > 1 for row in rows)}
    if curves:
        figures.learning(curves, results / "curves.png")


if __name__ == "__main__":
    try:
        write(sys.argv[1] if len(sys.argv) > 1 else "results")
    except UserError as error:
        sys.exit(str(error))
