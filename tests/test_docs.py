"""The documents: every command, Python block and link in them works."""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zlib

import numpy as np
import pytest
from PIL import Image

from digits_jax.data import drawn
from tests.conftest import ROOT, slow_except

DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
NETWORK, SERVER, DEVICES, CLUSTER, TRAINED, SEARCHED = (
    "fetches a data set",
    "serves a page",
    "needs several devices",
    "needs a cluster, or several hosts",
    "every config takes steps in test_population.py",
    "the samplers are tested in test_search.py",
)
PARSED = {  # these commands are not run, and why
    "--config=demo --workdir=results/demo --mode=demo": SERVER,
    "--config=mnist100 --mode=demo": SERVER,
    "--config=mnist --config.data.source=fashion_mnist": NETWORK,
    "--config=mnist100 --config.data.source=emnist/digits": NETWORK,
    "--config=mnist100 --config.data.raw_dir=FOLDER": "needs MNIST",
    "--config=resnet --config.mesh.data=4": DEVICES,
    "--config=resnet --config.mesh.data=8 --workdir=/shared/resnet --coordinator=HOST0:1234 "
    "--num_processes=2 --process_id=0": CLUSTER,
    "--config=resnet --config.mesh.data=8 --workdir=/shared/resnet --distributed": CLUSTER,
    "--config=resnet --config.mesh.data=2 --workdir=/shared/resnet "
    "--coordinator=digits-0.digits:1234 --num_processes=2 --process_id=0": CLUSTER,
    "--helpshort": "prints the flags",
    "--config=compact:p16966-distilled --config.population.size=3": "needs its teacher's digits",
    "--config=drawn": TRAINED,
    "--config=lenet5:numpy": TRAINED,
    "--config=mnist100:tower": TRAINED,
    "--config=resnet --config.population.size=8": TRAINED,
    "--config=mnist100 --mode=search --config.search.epochs=2": SEARCHED,
    "--config=mnist100 --mode=search --config.search.halving=3": SEARCHED,
    "--config=mnist100 --mode=search --config.search.sampler=grid": SEARCHED,
    "--config=mnist100 --mode=search --config.search.sampler=random": SEARCHED,
}


def fenced(text, *kinds):
    """The contents of the blocks of these kinds."""
    found = ((kind, content, indent) for indent, kind, content in FENCE.findall(text))
    return [re.sub(f"^{indent}", "", c, flags=re.M) for kind, c, indent in found if kind in kinds]


def snippets(text):
    """What stands in backticks, and each line of the blocks of commands, without their joints."""
    lines = "".join(fenced(text, "sh", "console")).splitlines()
    inline = re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", FENCE.sub("", text))
    return [part.strip() for line in (*lines, *inline) for part in line.split(" && ")]


def commands(text):
    """Those of the snippets that are commands, with one way to say `digits-jax`."""
    for snippet in snippets(text):
        if listed := re.fullmatch(r"command: \[(.*)\]", snippet):  # as Kubernetes has it
            snippet = listed[1].replace(", ", " ").replace("$(JOB_COMPLETION_INDEX)", "0")
        snippet = snippet.replace("\n", " ").replace(".venv/bin/", "")
        snippet = re.sub(r"python launch\.py|python -m digits_jax(?= )", "digits-jax", snippet)
        if re.match(r"(srun|digits-jax|python3?|pip|tensorboard) \S", snippet):
            yield snippet


def arguments(command):
    return command.partition("digits-jax ")[2]


EVERY = sorted({command for text in DOCUMENTS.values() for command in commands(text)})
OURS = sorted({arguments(command) for command in EVERY if "digits-jax " in command})
OTHERS = [command for command in EVERY if "digits-jax " not in command]
FLAGS = sorted(  # for example --config.epochs=5, to be added to a command
    {
        " ".join(snippet.split())
        for text in DOCUMENTS.values()
        for snippet in snippets(text)
        if re.match(r"--[\w.-]+=\S", snippet) and "NAME" not in snippet
    }
    - {"--config.data.source="}
)


def test_the_commands_are_found():
    assert len(OURS) > 40
    assert len(FLAGS) > 20
    assert len(OTHERS) > 10
    assert set(PARSED) <= set(OURS)


PARSE = """
import contextlib, importlib, json, sys
from absl import flags
from digits_jax import cli, settings
from digits_jax.devices import hosts

ours = [flag.name for flag in flags.FLAGS.flags_by_module_dict()["digits_jax.cli"]]
hosts.joined = lambda *_: contextlib.nullcontext()
for line in json.loads(sys.argv.pop()):
    for name in [*ours, *(name for name in flags.FLAGS if name.startswith("config."))]:
        delattr(flags.FLAGS, name)
    importlib.reload(cli)
    cli.Mode.function = lambda _: lambda config, *_, **__: config and settings.check(config)
    cli.exit_at_once = lambda: None
    error, sys.argv = "", ["digits-jax", *line]  # ml_collections looks there
    try:
        cli.dispatch(cli.parse(sys.argv))
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    print("answer", json.dumps(error))
"""


def own_config():
    """The config of one's own that docs/python.md shows."""
    (found,) = (b for b in fenced(DOCUMENTS["docs/python.md"], "python") if "VARIANTS" in b)
    return found


@pytest.fixture(scope="module")
def parsed(command, tmp_path_factory):
    """{arguments: what is wrong with them, ''}, all in one process."""
    config = tmp_path_factory.mktemp("config") / "mine.py"
    config.write_text(own_config())

    def line(text):
        words = shlex.split(re.sub(r"(FILE|mine)\.py", str(config), text))
        mine = [word for word in words if word != "--helpshort"] or ["--config=mnist"]
        alone = ("--config=", "--runs=", "--mode=read")
        if not any(word.startswith(alone) for word in mine):
            mode = ["--mode=train"] if "--mode" not in text else []
            mine = ["--config=mnist100", *mode, *mine]
        return mine

    lines = [*OURS, *FLAGS]
    code, said, error = command(json.dumps([line(text) for text in lines]), program=PARSE)
    assert code == 0, error
    answers = [json.loads(answer) for answer in re.findall(r"^answer (.*)$", said, re.MULTILINE)]
    return dict(zip(lines, answers, strict=True))


@pytest.mark.parametrize("line", [*OURS, *FLAGS])
def test_flags_and_fields_exist(line, parsed):
    assert parsed[line] == ""


TINY = (
    "--config.data.drawn_train=200",
    "--config.data.drawn_test=60",
    "--config.data.train=96",
    "--config.data.test=40",
    "--config.batch_size=32",
    "--config.eval_batch_size=40",
)
QUICK = "--config=compact --mode=describe"


@pytest.fixture(scope="module")
def place(cache, tmp_path_factory):
    """A folder with what the commands name: a config, a picture, letters as a file and folders."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine.py").write_text(own_config())
    (folder / "user").mkdir()
    (folder / "user" / "digits_jax").symlink_to(cache)
    images, labels = drawn.digits(0, 240)
    letters = np.array([*"abcdefghij"])[labels]
    np.savez(folder / "letters.npz", images=images, labels=letters)
    for i, (image, letter) in enumerate(zip(images, letters, strict=True)):
        (folder / "letters" / letter).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "letters" / letter / f"{i}.png")
    Image.fromarray(np.hstack(images[:2])).save(folder / "two.png")
    (folder / "photos").mkdir()
    for path in ("photo.png", "photo.jpg", "photos/IMG_0042_2.jpg"):
        Image.fromarray(255 - np.repeat(np.repeat(images[0], 5, axis=0), 5, axis=1)).save(
            folder / path
        )
    for name in ("configs", "results"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def launched(place):
    """Runs `digits-jax WORDS` in that folder, once."""

    @functools.cache
    def run(*words):
        environment = os.environ | {"XDG_CACHE_HOME": str(place / "user"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "digits_jax", *words]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def short(words):
    """A training in short: few digits, two epochs, its own numbers of members and trials."""
    sets = [word for word in words if word.startswith(("--config=", "--config."))]
    if not any(word.startswith("--config.data.source=") for word in sets):
        sets.append("--config.data.source=drawn")
    few = "--config.population.size=2" if "population.size" in " ".join(sets) else ""
    counts = ("--config.epochs=2", "--config.data.test_source=", "--config.keep_epochs=True")
    return (*sets, *TINY, *counts, *filter(None, [few]))


@pytest.mark.parametrize(
    "line", slow_except([QUICK], [line for line in OURS if line not in PARSED])
)
def test_a_command_runs(line, launched, place):
    """In short; a mode that reads a run gets one."""
    words = line.replace("FILE.py", "mine.py").replace("FILE.png", "two.png").split()
    mode = next((word for word in words if word.startswith("--mode=")), "--mode=train")
    own = f"--workdir=runs/{zlib.crc32(' '.join(short(words)).encode())}"
    others = [w for w in words if not w.startswith(("--config=", "--config.", "--workdir"))]
    if mode == "--mode=describe":
        assert "parameters" in launched(*words)
    elif "--runs=" in line:
        for name in ("one", "other"):
            launched("--config=mnist:mlp10", *short([]), f"--workdir=runs/{name}")
        launched("--mode=compare", "--runs=runs/one,runs/other")
    elif mode == "--mode=read":
        assert " read" in launched(*words)
        assert (place / "runs" / "read" / "readings.csv").exists()
    elif mode in ("--mode=train", "--mode=compare"):
        if "--config.prune.run=runs/lenet5" in words:
            launched("--config=lenet5", *short([]), "--workdir=runs/lenet5")
        assert "test" in launched(*short(words), *others, own)
    elif mode == "--mode=search":
        few = ("search.trials=2", "search.round=2", "search.epochs=1", "search.retrain=2")
        launched(*short(words), *(f"--config.{x}" for x in few), *others, f"{own}-search")
    else:
        launched(*short(words), own)
        launched(*[w for w in words if w.startswith("--config=")], *others, own)


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_name_what_exists(command):
    words, project = shlex.split(command), tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    for before, after in itertools.pairwise(words):
        if before in ("-c", "-r"):
            assert (ROOT / after).is_file()
    for extra in re.findall(r"\[(\w+)\]", command):
        assert extra in extras
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2])


def test_the_example_of_backpropagation_runs():
    (line,) = (command for command in OTHERS if "doctest" in command)
    subprocess.run([sys.executable, *line.split()[1:]], cwd=ROOT, check=True)


def same(said, written):
    """Whether `said` reads as `written`, where the line '...' stands for any lines.

    Numbers with a point differ a little between processors and versions of JAX.
    """
    number = r"(\\d+\\.\\d*)\\s*"
    pattern = re.sub(r"\d+\.\d*", number, re.sub(r"([\[\]()+{}|*?^$])", r"\\\1", written))
    pattern = re.sub(r"^\.\.\.\n", r"(?:.*\\n)*", pattern, flags=re.M)
    pattern = re.sub(r"[ \t]+", r"\\s*", pattern)
    found = re.fullmatch(pattern, said)
    numbers = re.findall(r"\d+\.\d*", written)
    return bool(found) and np.allclose(
        np.float64(found.groups()), np.float64(numbers), rtol=0.2, atol=0.1
    )


def test_what_is_the_same():
    assert same("a [0.25 ]\nb\nc\nd  1. 2\n", "a [0.265]\n...\nd 1. 2\n")
    assert not same("a 0.25\n", "b 0.25\n")
    assert not same("a 0.25\n", "a 0.65\n")
    assert not same("a 3\n", "a 4\n")
    assert not same("a\nb\n", "a\n")


@pytest.mark.parametrize(
    "name", slow_except(["README.md"], [n for n, t in DOCUMENTS.items() if fenced(t, "python")])
)
def test_python_blocks_run(name, place, monkeypatch, registries, unpictured):
    """One after the other; what they print is what stands below them."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "user"))
    namespace, said = {"__name__": "__main__"}, ""
    for _, kind, block in FENCE.findall(DOCUMENTS[name]):
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block, name, "exec"), namespace)
            said = output.getvalue()
        elif kind == "text" and said:
            assert same(said, block), f"it prints\n{said}\ninstead of\n{block}"
            said = ""
    assert not said, "a block prints what nothing below it shows"


def slug(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text):
    return {slug(heading) for heading in re.findall(r"^#+ (.*)", FENCE.sub("", text), re.M)}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text = FENCE.sub("", DOCUMENTS[name])
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", text)
    for link in filter(None, itertools.chain(*links)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert ROOT in target.resolve().parents, link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_readme_is_one_page():
    text = DOCUMENTS["README.md"]
    assert len(fenced(text, "sh")) == 2  # .ci/run types them
    prose = "\n".join(line for line in FENCE.sub("", text).splitlines() if line[:1] != "|")
    assert 500 < len(re.sub(r"<[^>]*>|\]\([^)]*\)|`[^`]*`", " ", prose).split()) <= 800


def test_every_page_is_in_the_index():
    index = DOCUMENTS["docs/README.md"]
    for path in ROOT.glob("docs/*.*"):
        assert path.name == "README.md" or f"]({path.name})" in index or f"[{path.name}]" in index


NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def outputs(cells):
    """All text that the cells of code print or show."""
    for cell in cells:
        for output in cell.get("outputs", ()):
            yield "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


def test_the_notebook_was_run_and_shows_what_it_should():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    pictures = [o for cell in code for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) >= 6
    assert NOTEBOOK.stat().st_size < 300_000
    text = "\n".join(outputs(code))
    assert "\x1b" not in text
    assert not re.search(r"(^|\s)/\w", text), "an absolute path"
    assert "error" not in {output["output_type"] for cell in code for output in cell["outputs"]}
    prose = "".join("".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        assert (NOTEBOOK.parent / link).exists(), link


@pytest.mark.slow
def test_the_notebook_runs(place, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "user"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS")  # it trains: compiled as for a user, not quickly
    notebook = nbformat.read(NOTEBOOK, 4)
    before = [cell.source for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=300, coalesce_streams=True).execute()
    assert [cell.source for cell in notebook.cells] == before
    said = "\n".join(outputs(notebook.cells))
    assert "\x1b" not in said
    assert re.search(r"lenet5: \d\d\.\d ± ", said)
