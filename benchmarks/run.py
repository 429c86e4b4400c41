"""How fast it is, and what it costs, beside PyTorch and plain Flax.

python -m benchmarks.run [--sections=throughput,start,memory,accuracy,scaling,population,roofline]
    [--networks=mnist100,compact] [--rounds=9] [--seconds=0.4] [--compile]

Writes benchmarks/results/<device>.json, a picture beside it and the tables of benchmarks/README.md;
sections that are not asked for stay as they are. Only throughput needs PyTorch.
"""

import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from benchmarks import costs, tables, throughput
from digits_jax.console import console
from digits_jax.data import dataset
from digits_jax.devices import backend
from digits_jax.errors import UserError, check_choice

NETWORKS = (
    "mnist100:mlp",
    "mnist100",
    "compact",
    "compact:phase2",
    "compact:phase3",
    "compact:phase5",
    "mnist:mlp10",
    "mnist:mlp128-tuned",
    "mnist",
    "two_head:mlp",
    "two_head",
    "lenet5",
    "resnet",
)
SECTIONS = ("throughput", "start", "memory", "accuracy", "scaling", "population", "roofline")
MODELS = ("mnist:mlp128", "mnist100", "lenet5", "compact", "resnet", "drawn", "mnist100:tower")
FOLDER = Path(__file__).parent

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "What to measure.")
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Which configs, NAME[:variant].")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of every engine.")
_SECONDS = flags.DEFINE_float("seconds", 0.4, "How long a turn takes, about.")
_COMPILE = flags.DEFINE_bool("compile", False, "torch.compile, too.")


def main(_: list[str]) -> None:
    for section in _SECTIONS.value:
        check_choice("--sections", section, SECTIONS)
    versions = {"python": platform.python_version(), "jax": jax.__version__} | _peer()
    with backend.command(dataset.cache_dir(costs.ours.config_of("mnist").data)):
        device = jax.default_backend()
        path = FOLDER / "results" / f"{device}.json"
        result: dict[str, Any] = (
            json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        )
        result |= {
            "device": device,
            "machine": {"processor": _processor(), "cores": len(os.sched_getaffinity(0))},
            "versions": result.get("versions", {}) | versions,
            "date": datetime.date.today().isoformat(),
        }
        for section in _SECTIONS.value:
            made = []
            for row in _measured(section):
                console.print("  ".join(f"{k} {tables.shown(v)}" for k, v in row.items()))
                made.append(row)
            name = "rows" if section == "throughput" else section
            if section == "throughput":
                kept = [r for r in result.get("rows", []) if r["network"] not in _NETWORKS.value]
                made = sorted(kept + made, key=lambda row: _position(row["network"]))
            result[name] = made
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        tables.write(result, FOLDER / "README.md", path.with_suffix(".png"))
        console.print(f"written to {path}, with a picture beside it, and to benchmarks/README.md")


def _peer() -> dict[str, str]:
    """PyTorch's version, where a section is asked for that measures it; UserError without it."""
    if "throughput" not in _SECTIONS.value:
        return {}
    try:
        import torch
    except ImportError:
        others = ",".join(section for section in SECTIONS if section != "throughput")
        raise UserError(
            "throughput is measured beside PyTorch: pip install -r benchmarks/requirements.txt, or "
            f"leave it out with --sections={others}"
        ) from None
    return {"torch": torch.__version__}


def _measured(section: str) -> Any:
    if section == "throughput":
        return throughput.rows(
            _NETWORKS.value, _ROUNDS.value, _SECONDS.value, compiled=_COMPILE.value
        )
    if section == "population":
        return costs.population(list(MODELS))
    if section == "roofline":
        return costs.roofline(_NETWORKS.value)
    return getattr(costs, section)()


def _position(network: str) -> int:
    return NETWORKS.index(network) if network in NETWORKS else len(NETWORKS)


def _processor() -> str:
    """As Linux names it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cli() -> None:
    """The command: one clear line and exit code 1 where the user can mend something."""
    try:
        app.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cli()
