"""The results as tables in benchmarks/README.md, and as a picture."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from digits_jax.report.figures import draw
from digits_jax.report.tables import markdown

TITLES = {
    "start": "From the command to the main job's first step, compiled programs cold and warm",
    "memory": "Peak resident memory: an epoch of the main job with its evaluation and report",
    "accuracy": "`configs/fast.py`: seconds from before the first jitted call to the last update, "
    "with no compiled programs kept; percent of test images",
    "scaling": "How a training step's cost grows (fastest of a second's)",
    "population": "An epoch of P members in one run / of P solo runs, side by side",
    "roofline": "Training steps against the machine's measured matrix products and copies",
}
_RATIOS = ("ours/torch_eager", "ours/flax")


def shown(value: Any) -> str:
    """A cell: a ratio with its spread, a rate without decimals, - for what was not measured."""
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['from']:.2f} to {value['to']:.2f})"
    if isinstance(value, float) and abs(value) >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


def write(result: dict[str, Any], readme: Path, picture: Path) -> None:
    """Replaces what stands between the table marks of `readme`, and draws `picture`."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    parts = [f"{result['device']}: {machine}; {versions}; {result['date']}."]
    if result.get("rows"):
        parts += [f"![ours / PyTorch eager](results/{picture.name})", _table(result["rows"])]
        parts += [_means(result["rows"])]
        parts += ["**Seconds for an epoch of 60,000 images, computed from the rates above**"]
        parts += [_table(_epochs(result["rows"]))]
        _draw(result["rows"], picture)
    for section, title in TITLES.items():
        if result.get(section):
            parts += [f"**{title}**", _table(result[section])]
    body = "\n\n".join(parts)
    marks = re.compile(r"(<!-- table -->).*(<!-- /table -->)", re.DOTALL)
    text = readme.read_text(encoding="utf-8")
    readme.write_text(
        marks.sub(lambda match: f"{match[1]}\n{body}\n{match[2]}", text), encoding="utf-8"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    header = list(dict.fromkeys(name for row in rows for name in row))
    return markdown(header, [[shown(row.get(name)) for name in header] for row in rows])


def _epochs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the networks that the NumPy engine has."""
    return [
        {"network": row["network"]}
        | {name: round(60_000 / row[name], 2) for name in ("numpy", "ours", "torch_eager")}
        for row in rows
        if row["task"] == "train" and row.get("numpy")
    ]


def _means(rows: list[dict[str, Any]]) -> str:
    """The geometric means of the ratios by task."""
    said = []
    for task, batch in dict.fromkeys(
        (r["task"], r["batch"] * (r["task"] == "infer")) for r in rows
    ):
        some = [r for r in rows if r["task"] == task and (task == "train" or r["batch"] == batch)]
        for name in _RATIOS:
            mean = float(np.exp(np.mean([np.log(r[name]["median"]) for r in some])))
            batches = f" in batches of {batch}" if batch else ""
            said.append(f"{task}{batches}, {name}: {mean:.2f}")
    return "Geometric means: " + "; ".join(said) + "."


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each network and task: ours / PyTorch eager, with the spread over rounds."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    tasks = list(dict.fromkeys((r["task"], r["batch"] * (r["task"] == "infer")) for r in rows))
    with draw.page(path, 8, 0.9 + 0.42 * len(networks)) as figure:
        ax = figure.add_subplot()
        colours = (draw.BLUE, draw.ORANGE, draw.TEAL)
        for t, ((task, batch), colour) in enumerate(zip(tasks, colours, strict=False)):
            some = {
                r["network"]: r[_RATIOS[0]]
                for r in rows
                if r["task"] == task and (task == "train" or r["batch"] == batch)
            }
            for network, ratio in some.items():
                y = networks.index(network) + 0.25 * (t - 1)
                ax.plot([ratio["from"], ratio["to"]], [y, y], color=colour, alpha=0.35, lw=4)
                ax.plot(ratio["median"], y, "o", color=colour)
            label = task if task == "train" else f"{task}, {batch} at once"
            ax.plot([], [], "o", color=colour, label=label)
        ax.axvline(1, color=draw.INK, lw=0.8)
        ax.set_xscale("log")
        ticks = [0.5, 1, 2, 4, 8]
        ax.set_xticks(ticks, [f"{x:g}x" for x in ticks])
        ax.minorticks_off()
        ax.set_yticks(range(len(networks)), networks)
        ax.invert_yaxis()
        ax.grid(axis="x")
        ax.set_title("Images per second, ours / PyTorch eager: median and range of the rounds")
        ax.legend(loc="upper right", ncols=3)
