"""What a run survives, measured.

python -m reliability.run [--sections=kills,stops,disk,devices,epochs,hosts,inputs] [--count=1.0]

Writes results/reliability.md; sections that are not asked for stay as they are. `--count` scales
how often each thing is tried.
"""

import json
import logging
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from absl import app, flags

from digits_jax import files
from digits_jax.console import console
from digits_jax.data import batches
from digits_jax.devices.backend import start
from digits_jax.report.tables import markdown
from reliability import devices, faults, inputs

TITLES = {
    "kills": "kill -9 at random moments of one training, started again each time",
    "stops": "SIGTERM at random moments of one training, started again each time",
    "disk": "The training on disks each a page too small for one of its writes, then with room",
    "devices": "20 steps of eight members in float64 on virtual devices: how far from one device's",
    "epochs": (
        "An epoch of two members in float32 on virtual devices: how far from one device's. Smooth "
        "networks and the MLP keep nearly every digit. Where a rectifier or a maximum turns on the "
        "last one, it grows: on the one device, a learning rate that is one rounding higher does "
        "the same"
    ),
    "hosts": "Two processes with two virtual devices each, of which one is killed",
    "inputs": "Damaged files and command lines",
}
INTRO = """# Reliability

What `python -m reliability.run` measured, on two CPU cores, with a training that has all a state
can hold: BatchNorm, dropout, averaged weights, augmentation, two members. "As undisturbed" means
that metrics.jsonl, its seconds apart, and the weights of every member are those of the same command
left alone, bit for bit.
"""
PATH = Path(__file__).parent.parent / "results" / "reliability.md"

_SECTIONS = flags.DEFINE_list("sections", list(TITLES), "What to measure.")
_COUNT = flags.DEFINE_float("count", 1.0, "How often, as a share of the reported numbers.")


def main(_: list[str]) -> None:
    known = PATH.with_suffix(".json")
    result: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    sections, count = _SECTIONS.value, _COUNT.value  # fuzzed flags are no longer parsed
    for section in sections:
        with tempfile.TemporaryDirectory() as folder:
            result[section] = _measured(section, Path(folder), count)
        files.write_json(known, result)
        files.write_text(PATH, _text(result))
        console.print(f"{section}: {result[section]}")


def _measured(section: str, folder: Path, count: float) -> list[dict[str, Any]]:
    def times(number: int) -> int:
        return max(round(number * count), 1)

    match section:
        case "kills":
            return [faults.signals(folder, signal.SIGKILL, times(50), epochs=times(120))]
        case "stops":
            return [faults.signals(folder, signal.SIGTERM, times(20), epochs=times(60))]
        case "disk":
            return [faults.full_disk(folder, times(1000))]  # more than there are
        case "devices":
            return devices.layouts(folder)
        case "epochs":
            return devices.epochs(folder)
        case "hosts":
            return devices.lost(folder)
    config = inputs.two_head.get_config()
    cache = batches.cache_dir(config.data)
    start(cache)
    rng, said = random.Random(0), {}
    files = inputs.readers(folder, cache)
    logging.disable(logging.WARNING)  # of checkpoints that cannot be read
    for name, reader in files.items():
        said[name] = inputs.fuzz(reader, times(900), rng, folder)
    said["command lines"] = inputs.arguments(times(900), rng)
    said["checkpoints"] = inputs.checkpoints(folder, times(200), rng)
    said["all"] = sum(said.values(), Counter())
    return inputs.table(said)


def _text(result: dict[str, Any]) -> str:
    parts = [INTRO.strip()]
    for section, title in TITLES.items():
        if rows := result.get(section):
            table = markdown(list(rows[0]), [[str(v) for v in row.values()] for row in rows])
            parts.append(f"**{title}**\n\n{table}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    app.run(main)
