"""The accuracy of every run's ONNX files, in float32 and in 8 bits.

python -m reliability.exports RUN ...

Exports each finished run (its folder) and writes results/export.md. Needs `pip install playwright`
and Chromium, in which the test images are read, too.
"""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from absl import app
from ml_collections import ConfigDict

from digits_jax import files, settings
from digits_jax.analysis.evaluate import open_run
from digits_jax.console import console
from digits_jax.data import dataset
from digits_jax.devices import backend
from digits_jax.errors import UserError
from digits_jax.export.export import FOLDER, PAGE, SMALL, WHOLE, export, share_right
from digits_jax.report import tables
from reliability import drawings

PATH = Path(__file__).parent.parent / "results" / "export.md"
INTRO = """# ONNX in float32 and in 8 bits

Of each run that `python -m reliability.exports` exported: the probabilities of onnxruntime differ
from JAX's by at most 1e-5 on 1,000 test images (else the export fails), and the test accuracies
of both files in percent, that in 8 bits by onnxruntime-web in Chromium, too. Weights in 8 bits are
-64 to 64: x86 without VNNI adds two products in 16 bits, which longer weights can leave; with them
the file of the resnet that was `demo` before read 98.64 there. `demo`, `compact` and `records-cnn`
are the runs of these folders, the others were trained again for this table (`fast` as one network);
what trains for longer than a few minutes is not in it.
"""
HEADER = (
    "run",
    "network",
    "bytes",
    "in 8 bits",
    "accuracy",
    "in 8 bits",
    "difference",
    "in Chromium",
)

# On a page that is ready: (model, images) -> the values of each output.
READ = """async ([model, pixels, shape]) => {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const ort = await import("./runtime/ort.wasm.bundle.min.mjs");
  const session = await ort.InferenceSession.create(bytes(model));
  const images = new ort.Tensor("float32", Float32Array.from(bytes(pixels), (p) => p / 255), shape);
  const output = await session.run({ images });
  await session.release();
  return session.outputNames.map((name) => [...output[name].data]);
}"""


def in_chromium(page: Any, model: Path, images: np.ndarray) -> list[np.ndarray]:
    """As `onnx_graph.run`, by onnxruntime-web on an exported page that is ready."""

    def text(content: bytes) -> str:
        return base64.b64encode(content).decode()

    parts = []
    for part in np.array_split(images, -(-len(images) // 500)):
        answers = page.evaluate(
            READ, [text(model.read_bytes()), text(part.tobytes()), list(part.shape)]
        )
        parts.append([np.reshape(values, (len(part), -1)) for values in answers])
    return [np.concatenate(answer) for answer in zip(*parts, strict=True)]


def main(argv: list[str]) -> None:
    with backend.command(dataset.cache_dir(ConfigDict({"cache_dir": ""}))):
        rows = [_row(folder) for folder in map(Path, argv[1:])]
    table = tables.markdown(HEADER, rows, [tables.LEFT] * 2 + [tables.RIGHT] * 6)
    files.write_text(PATH, f"{INTRO}\n{table}\n")
    console.print(PATH.read_text(encoding="utf-8"))


def _row(folder: Path) -> list[str]:
    recorded = settings.read(folder)
    if recorded is None:
        raise UserError(f"{folder} holds no run")
    config = ConfigDict(recorded)
    accuracy = export(config, folder)
    small = folder / FOLDER / SMALL
    run = open_run(config, folder)
    images, labels = dataset.examples(dataset.load(run.config.data).test, run.recipe)
    with drawings.browser() as chromium, drawings.served(folder / FOLDER / PAGE) as address:
        page = chromium.new_page()
        drawings.ready(page, address)
        answers = in_chromium(page, small, images)
    right = share_right(answers, labels, whole=config.data.dataset == "number")
    sizes = [(folder / FOLDER / name).stat().st_size for name in (WHOLE, SMALL)]
    members = config.population.size
    return [
        config.name,
        config.model.name + (f", {members} averaged" if members > 1 else ""),
        *(f"{size:,}" for size in sizes),
        *(tables.percent(accuracy[name]) for name in (WHOLE, SMALL)),
        f"{100 * (accuracy[SMALL] - accuracy[WHOLE]):+.2f}",
        tables.percent(right),
    ]


if __name__ == "__main__":
    app.run(main)
