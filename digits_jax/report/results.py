"""All runs side by side: the tables of the READMEs, and two pictures, from what the runs left.

`python -m digits_jax.report.results [results/]` rewrites them from the summary.json and
metrics.jsonl files of that folder: nothing here is typed in, and nothing is computed but means.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from digits_jax.errors import UserError
from digits_jax.report import figures, stats
from digits_jax.report import summary as report

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
    return report.percent(summary.get("mean"), summary.get("std"))


def _interval(summary: Summary) -> str:
    if summary["config"]["data"]["folds"]:
        return ""  # folds share digits: Student's t would be too narrow
    half = stats.half_width(_tests(summary))
    return "" if half is None else f"± {report.percent(half)}"


def _seeds(summary: Summary) -> str:
    lost = sum("diverged" in member for member in summary["members"])
    return f"{len(summary['members'])}" + (f" ({lost} diverged)" if lost else "")


def _over_mean(summary: Summary, value: float | None) -> str:
    """'99.70 (+0.21)': and by how much that is more than the mean."""
    if value is None:
        return ""
    return f"{report.percent(value)} ({100 * (value - summary['mean']):+.2f})"


def _heads(summary: Summary) -> str:
    heads = (summary.get("test") or {}).get("heads", {})
    if len(heads) < 2:
        return ""
    return ", ".join(f"{head} {report.percent(x)}" for head, x in heads.items())


def _gap(summary: Summary) -> str:
    train, validation = summary.get("train"), summary.get("validation")
    if not train or not validation:
        return report.percent(None)
    return report.percent(train["accuracy"] - validation["accuracy"])


# Name, alignment, content; the README beside the results shows the marked ones.
_COLUMNS: tuple[tuple[str, str, Callable[[Summary], str], bool], ...] = (
    ("data", "---", _data, False),
    ("parameters", "---:", lambda s: f"{s['model']['parameters']:,}", True),
    ("quoted", "---:", _quoted, True),
    ("test accuracy", "---:", _accuracy, True),
    ("95 %", "---:", _interval, True),
    ("seeds", "---:", _seeds, True),
    (
        *("best test epoch", "---:"),
        *(lambda s: _over_mean(s, s.get("best_test_epoch", {}).get("mean")), True),
    ),
    ("heads", "---", _heads, True),
    ("ensemble", "---:", lambda s: _over_mean(s, s.get("ensemble")), True),
    ("gap", "---:", _gap, False),
    ("epochs", "---:", lambda s: str(s["epochs"]), False),
    ("minutes", "---:", lambda s: f"{s['seconds']['total'] / 60:.1f}", False),
    ("device", "---", lambda s: str(s["device"]), False),
    ("date", "---", lambda s: s["date"], False),
)


def table(summaries: dict[str, Summary], folder: str = "", *, whole: bool = True) -> str:
    """A markdown table with a row per {run: summary}, in the order given, linked to `folder`."""
    columns = [column for column in _COLUMNS if whole or column[3]]
    lines = [
        ["run", *(name for name, *_ in columns)],
        ["---", *(align for _, align, *_ in columns)],
    ]
    for run, summary in summaries.items():
        cells = [content(summary) for _, _, content, _ in columns]
        lines.append([f"[{run}]({folder}{run}/)", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def damaged(summaries: dict[str, Summary]) -> str:
    """A markdown table of the runs that --mode=robustness has looked at, "" where there are none.

    The accuracy at the strongest level of each corruption, the mean over all levels of all of them,
    and the expected calibration error of the digits as they are, with temperature.
    """
    looked = {run: summary for run, summary in summaries.items() if "robustness" in summary}
    if not looked:
        return ""
    columns: dict[tuple[str, str], None] = {}
    for summary in looked.values():
        columns |= {(name, list(x)[-1]): None for name, x in summary["robustness"].items()}
    lines = [
        ["run", "as they are", *(f"{name} {level}" for name, level in columns), "all", "ECE"],
        ["---", *["---:"] * (len(columns) + 3)],
    ]
    for run, summary in looked.items():
        found = summary["robustness"]
        every = [x["mean"] for levels in found.values() for x in levels.values()]
        figures_of = [
            summary["mean"],
            *(found.get(name, {}).get(level, {}).get("mean") for name, level in columns),
            sum(every) / len(every),
            summary.get("calibration", {}).get("ece_tempered"),
        ]
        lines.append([f"[{run}]({run}/)", *map(report.percent, figures_of)])
    return f"\n\n{DAMAGED}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def more_pairs(summaries: dict[str, Summary]) -> str:
    """A markdown table of the runs that --mode=more-pairs has looked at, "" where there are none.

    Accuracy, that of the heads and of examples with every head right: of the test's pairs, then of
    the further ones.
    """
    looked = {run: s for run, s in summaries.items() if s.get("pairs", {}).get("split") == "test"}
    if not looked:
        return ""
    figures_of = ["accuracy", "heads", "both"]
    lines = [
        ["run", *figures_of, "pairs", *figures_of, "ensemble", "luck"],
        ["---", "---:", "---", "---:", "---:", "---:", "---", "---:", "---:", "---:"],
    ]
    for run, summary in looked.items():
        found, cells = summary["pairs"], []
        for part in (summary, found):
            said: Summary = part.get("test") or part
            both = report.percent(said["all_heads"]) if len(said["heads"]) > 1 else ""
            cells += [_accuracy(part), _heads({"test": said}), both]
        ensemble = report.percent(found["ensemble"]) if "ensemble" in found else ""
        luck = f"± {report.percent(found['draw_std'])}"
        more = f"{found['examples']:,}"
        lines.append([f"[{run}]({run}/)", *cells[:3], more, *cells[3:], ensemble, luck])
    return f"\n\n{PAIRS}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
        report.write_text(readme, f"{before}{BEGIN}\n{rows}\n{END}{after}")
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
    curves = {run: report.read_rows(results / run / "metrics.jsonl") for run in shown}
    curves = {
        run: rows
        for run, rows in curves.items()
        if max((row["epoch"] for row in rows), default=0) > 1
    }
    if curves:
        figures.learning(curves, results / "curves.png")


if __name__ == "__main__":
    try:
        write(sys.argv[1] if len(sys.argv) > 1 else "results")
    except UserError as error:
        sys.exit(str(error))
