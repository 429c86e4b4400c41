"""Measures how runs survive signals, full disks, lost processes and damaged files.

python -m reliability.run [--sections=kills,stops,disk,devices,epochs,hosts,inputs] [--count=1.0]

Writes results/reliability.md; other sections stay as they are. `--count` scales the number of
trials.
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
from digits_jax.data import dataset
from digits_jax.devices import backend
from digits_jax.report.tables import markdown
from reliability import devices, faults, inputs

TITLES = {
    "kills": "kill -9 at random moments of one training, started again each time",
    "stops": "SIGTERM at random moments of one training, started again each time",
    "disk": "The training on disks a page too small for one of its writes, then with room",
    "devices": "20 steps of eight members in float64 on virtual devices: differences from one",
    "epochs": (
        "An epoch of two members in float32 on virtual devices: difference from one device. Smooth "
        "networks and the MLP agree in nearly all digits. Rectifiers and maxima amplify rounding: "
        "on one device, a learning rate that is one rounding higher makes as large a difference"
    ),
    "hosts": "Two processes with two virtual devices each, of which one is killed",
    "inputs": "Damaged files and command lines",
}
INTRO = """# Reliability

Measured by `python -m reliability.run` on two CPU cores, with a training that uses everything a
state can hold: BatchNorm, dropout, averaged weights, augmentation, two members. "As undisturbed"
means that metrics.jsonl without its seconds and the weights of every member are, bit for bit, those
of the same command without a disturbance.
"""
PATH = Path(__file__).parent.parent / "results" / "reliability.md"

_SECTIONS = flags.DEFINE_list("sections", list(TITLES), "What to measure.")
_COUNT = flags.DEFINE_float("count", 1.0, "Number of trials, as a share of the reported ones.")


def main(_: list[str]) -> None:
    known = PATH.with_suffix(".json")
    result: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    sections, count = _SECTIONS.value, _COUNT.value  # "inputs" unparses the flags
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
            return [faults.full_disk(folder, times(1000))]  # all of them
        case "devices":
            return devices.layouts(folder)
        case "epochs":
            return devices.epochs(folder)
        case "hosts":
            return devices.lost(folder)
    config = inputs.two_head.get_config()
    cache = dataset.cache_dir(config.data)
    with backend.command(cache):
        rng, counts = random.Random(0), {}
        readers = inputs.readers(folder, cache)
        logging.disable(logging.WARNING)  # of checkpoints that cannot be read
        for name, reader in readers.items():
            counts[name] = inputs.fuzz(reader, times(900), rng, folder)
        for name, reader in inputs.pictures_of_sevens(folder).items():
            counts[name] = inputs.fuzz(reader, times(560), rng, folder, inputs.HEADER)
        counts["command lines"] = inputs.arguments(times(900), rng)
        counts["checkpoints"] = inputs.checkpoints(folder, times(200), rng)
        counts["all"] = sum(counts.values(), Counter())
        return inputs.table(counts)


def _text(result: dict[str, Any]) -> str:
    parts = [INTRO.strip()]
    for section, title in TITLES.items():
        if rows := result.get(section):
            table = markdown(list(rows[0]), [[str(v) for v in row.values()] for row in rows])
            parts.append(f"**{title}**\n\n{table}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    app.run(main)
