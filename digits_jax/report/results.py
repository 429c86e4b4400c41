"""All runs side by side: the tables of the READMEs, and two pictures, from what the runs left.

`python -m digits_jax.report.results [results/]` rewrites them from the summary.json and
metrics.jsonl files of that folder: nothing here is typed in, and nothing is computed but means.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from digits_jax import files
from digits_jax.errors import UserError
from digits_jax.report import artifacts, figures, stats
from digits_jax.report.tables import LEFT, RIGHT, markdown, percent

Summary = dict[str, Any]

INTRO = """# Results

Each folder is the run of one config, as `launch.py` left it. Accuracies are in percent of all test
examples; ± is the standard deviation over the seeds, 95 % the interval of their mean. Quoted is
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


def _data(summary: Summary) -> str:
    data = summary["data"]
    source, test = data["source"], data["test_source"]
    if extra := data["drawn_extra"]:
        return f"{data['dataset']} (and {extra:,} drawn)"
    if source == test:
        return data["dataset"] + ("" if source == "mnist" else f" ({source})")
    return f"{data['dataset']} ({source}, tested on {test})"


def _tests(summary: Summary) -> list[float]:
    return [member["test"] for member in summary["members"] if "test" in member]


def _quoted(summary: Summary) -> str:
    return " / ".join(f"{x:.2f}" for x in summary["config"]["quoted"])


def _accuracy(summary: Summary) -> str:
    return percent(summary.get("mean"), summary.get("std"))


def _interval(summary: Summary) -> str:
    if summary["config"]["data"]["folds"]:
        return ""  # folds share digits: Student's t would be too narrow
    half = stats.half_width(_tests(summary))
    return "" if half is None else f"± {percent(half)}"


def _seeds(summary: Summary) -> str:
    lost = sum("diverged" in member for member in summary["members"])
    return f"{len(summary['members'])}" + (f" ({lost} diverged)" if lost else "")


def _over_mean(summary: Summary, value: float | None) -> str:
    """'99.70 (+0.21)': and by how much that is more than the mean."""
    if value is None:
        return ""
    return f"{percent(value)} ({100 * (value - summary['mean']):+.2f})"


def _best_test_epoch(summary: Summary) -> str:
    return _over_mean(summary, summary.get("best_test_epoch", {}).get("mean"))


def _heads(summary: Summary) -> str:
    heads = (summary.get("test") or {}).get("heads", {})
    if len(heads) < 2:
        return ""
    return ", ".join(f"{head} {percent(x)}" for head, x in heads.items())


def _gap(summary: Summary) -> str:
    train, validation = summary.get("train"), summary.get("validation")
    if not train or not validation:
        return percent(None)
    return percent(train["accuracy"] - validation["accuracy"])


class _Column(NamedTuple):
    """content: a run's cell; short: the README beside the results shows it, too."""

    name: str
    align: str
    content: Callable[[Summary], str]
    short: bool = False


_COLUMNS = (
    _Column("data", LEFT, _data),
    _Column("parameters", RIGHT, lambda s: f"{s['model']['parameters']:,}", short=True),
    _Column("quoted", RIGHT, _quoted, short=True),
    _Column("test accuracy", RIGHT, _accuracy, short=True),
    _Column("95 %", RIGHT, _interval, short=True),
    _Column("seeds", RIGHT, _seeds, short=True),
    _Column("best test epoch", RIGHT, _best_test_epoch, short=True),
    _Column("heads", LEFT, _heads, short=True),
    _Column("ensemble", RIGHT, lambda s: _over_mean(s, s.get("ensemble")), short=True),
    _Column("gap", RIGHT, _gap),
    _Column("epochs", RIGHT, lambda s: str(s["epochs"])),
    _Column("minutes", RIGHT, lambda s: f"{s['seconds']['total'] / 60:.1f}"),
    _Column("device", LEFT, lambda s: str(s["device"])),
    _Column("date", LEFT, lambda s: s["date"]),
)


def table(summaries: dict[str, Summary], folder: str = "", *, whole: bool = True) -> str:
    """A markdown table with a row per {run: summary}, in the order given, linked to `folder`."""
    columns = [column for column in _COLUMNS if whole or column.short]
    return markdown(
        ["run", *(column.name for column in columns)],
        [
            [f"[{run}]({folder}{run}/)", *(column.content(summary) for column in columns)]
            for run, summary in summaries.items()
        ],
        [LEFT, *(column.align for column in columns)],
    )


def damaged(summaries: dict[str, Summary]) -> str:
    """A markdown table of the runs that --mode=robustness has looked at, "" where there are none.

    The accuracy at the strongest level of each corruption, the mean over all levels of all of them,
    and the expected calibration error of the digits as they are, with temperature.
    """
    looked = {run: summary for run, summary in summaries.items() if "robustness" in summary}
    if not looked:
        return ""
    corruptions = (item for s in looked.values() for item in s["robustness"].items())
    columns = list(dict.fromkeys((name, list(levels)[-1]) for name, levels in corruptions))
    rows = []
    for run, summary in looked.items():
        found = summary["robustness"]
        every = [x["mean"] for levels in found.values() for x in levels.values()]
        figures_of = [
            summary["mean"],
            *(found.get(name, {}).get(level, {}).get("mean") for name, level in columns),
            sum(every) / len(every),
            summary.get("calibration", {}).get("ece_tempered"),
        ]
        rows.append([f"[{run}]({run}/)", *map(percent, figures_of)])
    header = ["run", "as they are", *(f"{name} {level}" for name, level in columns), "all", "ECE"]
    return f"\n\n{DAMAGED}\n\n{markdown(header, rows, [LEFT] + [RIGHT] * (len(header) - 1))}"


def more_pairs(summaries: dict[str, Summary]) -> str:
    """A markdown table of the runs that --mode=more-pairs has looked at, "" where there are none.

    Accuracy, that of the heads and of examples with every head right: of the test's pairs, then of
    the further ones.
    """
    looked = {run: s for run, s in summaries.items() if s.get("pairs", {}).get("split") == "test"}
    if not looked:
        return ""
    rows = []
    for run, summary in looked.items():
        found, cells = summary["pairs"], list[str]()
        for part in (summary, found):
            test: Summary = part.get("test") or part
            both = percent(test["all_heads"]) if len(test["heads"]) > 1 else ""
            cells += [_accuracy(part), _heads({"test": test}), both]
        cells.insert(3, f"{found['examples']:,}")
        ensemble = percent(found["ensemble"]) if "ensemble" in found else ""
        rows.append([f"[{run}]({run}/)", *cells, ensemble, f"± {percent(found['draw_std'])}"])
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
            table({run: summary})
            damaged({run: summary})
            more_pairs({run: summary})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not the summary of a run ({error!r})") from None
    return summaries


def reported(summaries: dict[str, Summary]) -> dict[str, Summary]:
    """Those of the configs, without the runs of searches, which lie deeper."""
    return {run: summary for run, summary in summaries.items() if "/" not in run}


def tables(results: Path, summaries: dict[str, Summary]) -> dict[Path, str]:
    """The table of each README: that of the folder, and that beside it, which is shorter."""
    folder = f"{results.absolute().name}/"
    return {
        results / "README.md": table(summaries) + more_pairs(summaries) + damaged(summaries),
        results.absolute().parent / "README.md": table(reported(summaries), folder, whole=False),
    }


def write(results: str | os.PathLike) -> None:
    """Rewrites the tables and the pictures; text outside the markers of a table stays.

    Of the README.md beside the folder only where that has the markers. Raises UserError where there
    is no summary, or a damaged one.
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
        points = [
            {
                "run": run,
                "dataset": summary["data"]["dataset"],
                "parameters": summary["model"]["parameters"],
                "mean": summary["mean"],
                "half": stats.half_width(_tests(summary)),
                "quoted": [x / 100 for x in summary["config"]["quoted"]],
            }
            for run, summary in shown.items()
        ]
        figures.frontier(points, results / "accuracy.png")
    logs = ((run, artifacts.read_rows(results / run / "metrics.jsonl")) for run in shown)
    curves = {run: rows for run, rows in logs if any(row["epoch"] > 1 for row in rows)}
    if curves:
        figures.learning(curves, results / "curves.png")


if __name__ == "__main__":
    try:
        write(sys.argv[1] if len(sys.argv) > 1 else "results")
    except UserError as error:
        sys.exit(str(error))
