"""Exports a trained run: ONNX in float32 and in 8 bits, StableHLO, a model card, a web page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as stablehlo
from ml_collections import ConfigDict
from rich.text import Text

from digits_jax import files, settings
from digits_jax.analysis.runs import SUMMARY, Summary, open_run, read_summary, writable
from digits_jax.console import console, percent, status
from digits_jax.core.step import apply
from digits_jax.data import dataset
from digits_jax.data.batches import normalize, to_float
from digits_jax.data.recipes import DIGITS
from digits_jax.errors import UserError
from digits_jax.export.demo import site
from digits_jax.models import layers
from digits_jax.report.tables import LEFT, RIGHT, markdown
from digits_jax.training import predictor
from digits_jax.training.predictor import Predictor
from digits_jax.types import Array

FOLDER, PAGE = "export", "demo"
WHOLE, SMALL, HLO, CARD = "model.onnx", "model.int8.onnx", "model.stablehlo", "README.md"
PLATFORMS = ("cpu", "cuda", "tpu")
CLOSE = 1e-5  # the largest difference of probabilities between JAX and an exported file
OPSET = 18  # of ONNX, which every runtime in use supports
_NO_PAGE = "the page is for digits; this run reads other classes"
_SAMPLE = 1000  # images for the comparison, and for the ranges of activations in 8 bits


def export(
    config: ConfigDict, workdir: str | Path, out: str | Path | None = None
) -> dict[str, float]:
    """Writes export/, files that are used without this code, into `workdir` or `out`.

    config: as for `open_run`. Returns the test accuracies of the two ONNX files. Raises UserError
    where a package is missing, the run is not finished, or a file disagrees with the run.
    """
    try:
        import flatbuffers  # noqa: F401  jax.export needs it
        import onnxruntime  # noqa: F401

        from digits_jax.export import onnx_graph
    except ImportError as error:
        raise UserError(
            f'--mode=export needs {error.name}: pip install "digits_jax[export]"'
        ) from None
    workdir = Path(workdir)
    run = open_run(config, workdir)
    summary = read_summary(workdir / SUMMARY)
    if not summary:
        raise UserError(f"{workdir} holds no finished run; train it to its end first")
    folder = writable(workdir, out, FOLDER) / FOLDER
    heads, shape, predict = run.recipe.heads, run.recipe.shape, probabilities(run)
    folder.mkdir(exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)  # it is written last
    shutil.rmtree(folder / PAGE, ignore_errors=True)  # it may be of another network
    shutil.copyfile(workdir / predictor.FILE, folder / predictor.FILE)

    data = dataset.load(run.config.data)
    images, labels = dataset.examples(data.test, run.recipe)
    train = data.train.of(0)
    sample = dataset.examples(train._replace(rows=train.rows[:_SAMPLE]), run.recipe)[0]
    status("converting to ONNX and StableHLO")
    with layers.portable():
        facts = {"name": config.name, "heads": json.dumps(heads)}
        whole = onnx_graph.convert(predict, shape, list(heads), facts, OPSET)
        (batch,) = stablehlo.symbolic_shape("B")
        symbolic = jax.ShapeDtypeStruct((batch, *shape), np.float32)
        exported = stablehlo.export(jax.jit(predict), platforms=PLATFORMS)(symbolic)
        hlo = bytes(exported.serialize())
    (folder / WHOLE).write_bytes(whole.SerializeToString())
    (folder / HLO).write_bytes(hlo)
    status("converting to 8 bits")
    onnx_graph.quantize(folder / WHOLE, folder / SMALL, np.asarray(to_float(sample, np.float32)))

    status("reading the test images with the files")
    expected = [np.asarray(p) for p in jax.jit(predict)(to_float(images[:_SAMPLE], np.float32))]
    for name, answer in (
        (WHOLE, onnx_graph.run(folder / WHOLE, images[:_SAMPLE])),
        (HLO, stablehlo.deserialize(bytearray(hlo)).call(to_float(images[:_SAMPLE], np.float32))),
    ):
        apart = max(float(np.abs(p - q).max()) for p, q in zip(answer, expected, strict=True))
        if apart > CLOSE:
            raise UserError(f"{folder / name} differs by {apart:.1e} from the run's probabilities")
    answers = {name: onnx_graph.run(folder / name, images) for name in (WHOLE, SMALL)}
    numbers = config.data.dataset == "number"
    accuracy = {name: share_right(answers[name], labels, whole=numbers) for name in answers}
    status("writing the page", brief=True)
    cache = dataset.cache_dir(config.data)
    try:
        if run.config.data.classes:
            raise UserError(_NO_PAGE)
        line = _line(run, summary, share_right(answers[WHOLE], labels, whole=True))
        site.write(folder / PAGE, folder / WHOLE, run.recipe, line, cache, run.threshold)
    except UserError as error:
        console.print(Text.assemble(("without a page to draw on", "yellow"), f": {error}"))
    files.write_text(folder / CARD, _card(run, summary, folder, accuracy))
    reads = (
        f"{folder}: {WHOLE} reads {percent(accuracy[WHOLE])} of {len(images):,} test images, "
        f"{SMALL} {percent(accuracy[SMALL])}; {HLO} for {', '.join(PLATFORMS)}; {CARD}"
    )
    console.print(Text(reads))
    return accuracy


def demo(
    config: ConfigDict,
    workdir: str | Path,
    port: int,
    host: str = site.LOCAL,
    out: str | Path | None = None,
) -> None:
    """Serves the run's page on `host`:`port`; exports the run first where that is not done.

    Raises UserError as `export` does, without onnxruntime-web, and for a port that is in use.
    """
    folder = Path(out or workdir) / FOLDER
    page, weights = folder / PAGE, [folder / predictor.FILE, Path(workdir) / predictor.FILE]
    done = site.whole(page) and all(path.is_file() for path in (folder / CARD, *weights))
    if not done or len({path.read_bytes() for path in weights}) > 1:
        export(config, workdir, out)
    if not site.whole(page):
        site.runtime(dataset.cache_dir(config.data))  # raises if it is what was missing
        raise UserError(f"{workdir}: {_NO_PAGE}")
    status("")
    site.serve(page, port, host)


def share_right(answers: list[np.ndarray], labels: dict[str, np.ndarray], whole: bool) -> float:
    """The share of images that every head reads right, where `whole`; else of the heads' answers.

    answers: [N, classes] of each head; labels: {head: [N]}.
    """
    right = [p.argmax(axis=1) == y for p, y in zip(answers, labels.values(), strict=True)]
    return float(np.mean(np.all(right, axis=0) if whole else right))


def _averaged(logits: list[Array]) -> Array:
    """Logits of the members' mean probabilities."""
    if len(logits) == 1:
        return logits[0]
    return jnp.log(sum(jax.nn.softmax(x) for x in logits) / len(logits))


def probabilities(run: Predictor) -> Callable[[Array], tuple[Array, ...]]:
    """-> a function of [B, H, W] float32 in [0, 1] that returns [B, classes] for each head.

    Calibrated probabilities; of several members their average, as in `evaluate`.
    """
    members = [run.member(i) for i in range(run.config.population.size)]
    scale = 1 / float(run.temperature[-1])

    def predict(images: Array) -> tuple[Array, ...]:
        pixels = normalize(images, run.normalizer)
        logits = [apply(run.program.model, weights, pixels)[0] for weights in members]
        return tuple(
            jax.nn.softmax(scale * _averaged([member[head] for member in logits]))
            for head in run.recipe.heads
        )

    return predict


def _network(config: ConfigDict, summary: Summary) -> str:
    network = f"{summary['model']['name']}, {summary['model']['parameters']:,} parameters"
    if config.population.size == 1:
        return network
    return f"the averaged probabilities of {config.population.size} networks ({network} each)"


def _source(run: Predictor, facts: Summary) -> str:
    if facts["source"] == "drawn":
        return "digits that a program draws, no handwriting"
    if facts["source"] != "mnist":
        return f"{_name(facts['source'])}, SHA-256 {facts['sha256'][:16]}"
    extra = facts["drawn_extra"]
    more = [f"{extra:,} digits that a program draws"] if extra else []
    if run.config.data.nondigits:
        more.append("drawn images of what is no digit")
    beside = f"; beside them {' and '.join(more)}" if more else ""
    return f"MNIST, by Y. LeCun, C. Cortes and C. Burges{beside}"


def _name(source: str) -> str:
    """A source as others may know it: of a path the last part."""
    return source if source in dataset.SOURCES else Path(source).name


def _line(run: Predictor, summary: Summary, right: float) -> str:
    """The page's words about its network, which reads the share `right` of the test images."""
    facts, data = summary["data"], run.config.data
    read = ""
    if "test" in summary:
        read = f" Then it got {facts['test']:,} that it had never seen."
        read += f" It read {percent(right)} of them right."
    what = [] if facts["source"] == "drawn" else ["handwriting"]
    if not what or data.drawn_extra:
        what.append("digits that a program draws")
    if data.nondigits:
        what.append("what is no digit")
    return (
        f"This network learned to read from {facts['train']:,} pictures of {', of '.join(what)}."
        f"{read} It can be wrong. Its name: {settings.title_of(run.config)}, "
        f"{_network(run.config, summary)}, trained on {facts['dataset']} ({_source(run, facts)})."
    )


def _card(run: Predictor, summary: Summary, folder: Path, accuracy: dict[str, float]) -> str:
    """The model card (Mitchell et al. 2019, arXiv:1810.03993), from the run's own files."""
    config, recipe, facts = run.config, run.recipe, summary["data"]
    network = _network(config, summary)
    heads = ", ".join(f"`{head}` [B, {classes}]" for head, classes in recipe.heads.items())
    rows = [
        (WHOLE, f"ONNX, opset {OPSET}", percent(accuracy[WHOLE])),
        (SMALL, "ONNX in 8 bits, with the same sums on every processor", percent(accuracy[SMALL])),
        (HLO, f"StableHLO of `jax.export`, for {', '.join(PLATFORMS)}", "as the first"),
        (predictor.FILE, "the weights, NumPy arrays", ""),
    ]
    cells = []
    for name, what, right in rows:
        path = folder / name
        size, digest = f"{path.stat().st_size:,}", f"`{site.sha256(path)[:16]}`"
        cells.append([f"`{name}`", what, size, right, digest])
    header = ("file", "what it is", "bytes", "test accuracy", "SHA-256 begins")
    table = markdown(header, cells, (LEFT, LEFT, RIGHT, RIGHT, LEFT))
    ece = summary.get("calibration", {})
    ece = ece.get("ensemble", ece).get("ece_tempered")
    sure = f" Expected calibration error {percent(ece)}, 15 bins." if ece is not None else ""
    page = ""
    if (folder / PAGE / "facts.json").is_file():
        page = _PAGE.format(folder=PAGE, whole=WHOLE, runtime=site.RUNTIME)
    classes = len(config.data.classes) or len(DIGITS)
    reading = f" of {classes} x left + right" if classes**2 in recipe.heads.values() else ""
    looks, limits = _AS_MNIST, _DIGITS_ALONE
    if config.data.dataset == "number":
        looks, limits = _PIECES, _NUMBERS_ALONE
        reading = _UNTIL_NOTHING.format(run.threshold)
    if config.data.classes:
        limits = _CLASSES_ALONE.format(", ".join(config.data.classes))
    tested = f"`{_name(facts['test_source'])}`"
    return _CARD.format(
        name=settings.title_of(config),
        network=network[0].upper() + network[1:],
        command=summary["command"],
        table=table,
        shape="[B, {}, {}]".format(*recipe.shape),
        says=f"{heads}, probabilities{reading}",
        source=_source(run, facts),
        sure=sure,
        page=page,
        looks=looks,
        limits=limits,
        tested=f"a sixth of {tested}, held out" if facts["held_out"] else tested,
        dataset=f" of `{facts['dataset']}`" if not config.data.classes else "",
        **{key: facts[key] for key in ("train", "validation", "test")},
    )


_CARD = """# {name}

{network}, trained by digits_jax: `{command}`.

{table}

**Reads** `images` {shape} float32, 0 paper to 1 ink, as many as you like. {looks}
**Says** {says}.

**Trained on** {train:,} examples{dataset} ({source});
{validation:,} more chose the weights and the temperature. **Tested on** {test:,} examples
({tested}), once, at the end.{sure}
{page}
**Limits.** {limits} Not for amounts, addresses or exams without a second look.
"""


_AS_MNIST = """A digit fills a box of
20x20 pixels and lies with its centre of mass in the middle of 28x28, as MNIST's do."""
_PIECES = """One
holds connected ink: a digit, or up to four that touch. It fits 20x20 pixels; where it is more than
1.1 times as wide as high, it is 20 pixels high instead, but at most 48 wide. Its centre of mass is
in the middle."""
_UNTIL_NOTHING = """ of 0 to 9, `?` (no digit) and, of all but the first, nothing more; the text
is the likeliest of these, `?` left out, up to the first nothing. It is `?` where the probability
that there is no `?` is below {:.3f}"""
_DIGITS_ALONE = """It knows the digits 0 to 9 and nothing else: any picture gets an answer. MNIST's
writers were American clerks and students of the 1990s; other hands, pens and crossed sevens are
read less well."""
_NUMBERS_ALONE = """It knows the digits 0 to 9, and a few things that are none: others may be read
as digits. MNIST's writers were American clerks and students of the 1990s; other hands, pens and
crossed sevens are read less well."""
_CLASSES_ALONE = """It knows these classes and nothing else, and any picture gets an answer: {}."""


_PAGE = """
**The page** in `{folder}/` reads what is drawn on it with `{whole}`, in the browser and from any
static host. It brings {runtime} (MIT licence, Microsoft).
"""
