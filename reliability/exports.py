"""What exporting costs: every run's ONNX file, whole and in 8 bits.

python -m reliability.exports RUN ...

Exports each finished run (its folder) and writes results/export.md.
"""

from pathlib import Path

from absl import app
from ml_collections import ConfigDict

from digits_jax import report, settings
from digits_jax.console import console
from digits_jax.errors import UserError
from digits_jax.export import FOLDER, SMALL, WHOLE, export

PATH = Path(__file__).parent.parent / "results" / "export.md"
INTRO = """# ONNX, whole and in 8 bits

Of each run that `python -m reliability.exports` exported: the probabilities of onnxruntime differ
from JAX's by at most 1e-5 on 1,000 test images (else the export fails), and the test accuracies
of both files in percent. Runs of one network were trained for this table, some of them for a few
epochs only.

| run | network | bytes | in 8 bits | accuracy | in 8 bits | difference |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def main(argv: list[str]) -> None:
    lines = []
    for folder in map(Path, argv[1:]):
        recorded = settings.read(folder)
        if recorded is None:
            raise UserError(f"{folder} holds no run")
        config = ConfigDict(recorded)
        accuracy = export(config, folder)
        sizes = [(folder / FOLDER / name).stat().st_size for name in (WHOLE, SMALL)]
        members = config.population.size
        cells = [
            config.name,
            config.model.name + (f", {members} averaged" if members > 1 else ""),
            *(f"{size:,}" for size in sizes),
            *(report.percent(accuracy[name]) for name in (WHOLE, SMALL)),
            f"{100 * (accuracy[SMALL] - accuracy[WHOLE]):+.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    report.write_text(PATH, INTRO + "\n".join(lines) + "\n")
    console.print(PATH.read_text(encoding="utf-8"))


if __name__ == "__main__":
    app.run(main)
