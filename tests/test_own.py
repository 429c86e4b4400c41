"""Sets of the user's own: the same arrays from every form, and mistakes in one line."""

import gzip
import json
import types
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import digits_jax
from digits_jax.analysis.evaluate import evaluate
from digits_jax.data import dataset, drawn, named, own, recipes
from digits_jax.errors import UserError
from digits_jax.export.export import demo
from tests.conftest import shrink


def by_class(digits):
    """(images, labels) in the order in which folders are read."""
    order = np.argsort(digits.labels, kind="stable")
    return np.asarray(digits.images)[order], np.asarray(digits.labels)[order]


def write_idx(path, array):
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(content + array.astype(np.uint8).tobytes())


def write_folders(path, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / str(label) / f"{i:05}.png")


def write_csv(path, images, labels, header=True):
    lines = ["label," + ",".join(f"pixel{i}" for i in range(784))] if header else []
    for image, label in zip(images, labels, strict=True):
        lines.append(f"{label}," + ",".join(map(str, image.ravel())))
    path.write_text("\n".join(lines) + "\n")


def every_form(folder, train, test=None):
    """{form: path} of the same set."""
    idx = folder / "idx"
    idx.mkdir()
    write_idx(idx / "train-images-idx3-ubyte.gz", train[0])
    write_idx(idx / "train-labels.idx1-ubyte", train[1])
    arrays = {"x_train": train[0], "y_train": train[1]}
    write_folders(folder / "folders" / ("train" if test else ""), *train)
    if test:
        write_idx(idx / "t10k-images-idx3-ubyte", test[0])
        write_idx(idx / "t10k-labels-idx1-ubyte", test[1])
        arrays |= {"x_test": test[0], "y_test": test[1]}
        write_folders(folder / "folders" / "test", *test)
    np.savez(folder / "set.npz", **arrays)
    forms = {"idx": idx, "npz": folder / "set.npz", "folders": folder / "folders"}
    if not test:
        write_csv(folder / "set.csv", *train)
        forms["csv"] = folder / "set.csv"
    return forms


@pytest.mark.parametrize("with_test", [False, True])
def test_the_same_set_in_every_form(tmp_path, with_test):
    train, test = by_class(drawn.digits(1, 60)), by_class(drawn.digits(2, 40))
    forms = every_form(tmp_path, train, test if with_test else None)
    for form, path in forms.items():
        found = own.read(path)
        np.testing.assert_array_equal(found.train.images, train[0], err_msg=form)
        np.testing.assert_array_equal(found.train.labels, train[1], err_msg=form)
        assert found.classes == tuple("0123456789"), form
        assert (found.test is not None) == with_test
        if with_test:
            np.testing.assert_array_equal(found.test.images, test[0], err_msg=form)
        assert found.digest == own.of_arrays(*train, test if with_test else None).digest


def test_forms_of_labels(tmp_path):
    """As pandas, Keras, NumPy's savetxt and OpenML have them."""
    images, labels = by_class(drawn.digits(1, 30))
    known = own.of_arrays(images, labels).digest
    for given in (labels.astype(str).astype(object), labels.astype("S"), labels.astype(float)):
        assert own.of_arrays(images, given).digest == known
    pixels = images.reshape(30, 784)
    np.savetxt(tmp_path / "a.csv", np.c_[labels, pixels], delimiter=",")
    header = ",".join([*(f"pixel{i}" for i in range(1, 785)), "class"])
    last = np.c_[pixels, labels]
    np.savetxt(tmp_path / "b.csv", last, fmt="%d", delimiter=",", header=header, comments="")
    for name in "ab":
        assert own.read(tmp_path / f"{name}.csv").digest == known, name
    np.savetxt(tmp_path / "c.csv", last, fmt="%d", delimiter=",", header="a,b,c", comments="")
    with pytest.raises(UserError, match="no column is named label or class"):
        own.read(tmp_path / "c.csv")
    true = own.of_arrays(images, labels > 4)
    assert (true.classes, true.train.labels.sum()) == (("0", "1"), (labels > 4).sum())


def test_several_sets_in_one_folder_are_not_mixed(tmp_path):
    images, labels = by_class(drawn.digits(1, 20))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "b" / "train-labels-idx1-ubyte", labels)
    with pytest.raises(UserError, match="holds several sets"):
        own.read(tmp_path)
    assert own.read(tmp_path / "b").digest == own.of_arrays(images, labels).digest


def test_hidden_files_and_links_to_nowhere_do_not_count(tmp_path):
    images, labels = by_class(drawn.digits(1, 20))
    write_folders(tmp_path, images, labels)
    (tmp_path / str(labels[0]) / ".#lock").symlink_to("nowhere")
    assert own.read(tmp_path).digest == own.of_arrays(images, labels).digest


def test_forms_of_arrays():
    images, labels = by_class(drawn.digits(1, 30))
    known = own.of_arrays(images, labels)
    for x in (images / 255, images[..., None], images.reshape(-1, 784), images.astype(int)):
        assert own.of_arrays(x, labels[:, None].astype(float)).digest == known.digest


def test_classes_are_what_the_labels_say():
    images = drawn.digits(1, 4).images
    for labels, classes, indices in (
        (["b", "a", "b", "c"], ("a", "b", "c"), [1, 0, 1, 2]),
        ([26, 1, 9, 10], ("1", "9", "10", "26"), [3, 0, 1, 2]),
        (["10", "9", "1", "9"], ("1", "9", "10"), [2, 1, 0, 1]),
    ):
        found = own.of_arrays(images, np.asarray(labels))
        assert found.classes == classes
        assert found.train.labels.tolist() == indices


def test_a_changed_file_is_read_again(tmp_path):
    images, labels = by_class(drawn.digits(1, 30))
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    assert len(own.read(tmp_path / "set.npz").train.labels) == 30
    np.savez(tmp_path / "set.npz", images=images[:20], labels=labels[:20])
    assert len(own.read(tmp_path / "set.npz").train.labels) == 20


def test_a_csv_with_names_and_without_a_header(tmp_path):
    images, labels = by_class(drawn.digits(1, 20))
    names = np.asarray([f"class {label}" for label in labels])
    write_csv(tmp_path / "a.csv", images, names, header=False)
    found = own.read(tmp_path / "a.csv")
    assert found.digest == own.of_arrays(images, names).digest
    write_csv(tmp_path / "b.csv", images / 255, names)
    assert own.read(tmp_path / "b.csv").digest == found.digest


def test_larger_pictures_are_centred_as_data_reads_them(tmp_path):
    """A digit of 28x28, drawn four times as large on dark paper, is the same digit."""
    images, labels = by_class(drawn.digits(1, 20))
    write_folders(tmp_path / "small", images, labels)
    write_folders(tmp_path / "large", images.repeat(4, 1).repeat(4, 2), labels)
    small, large = (own.read(tmp_path / name).train.images for name in ("small", "large"))
    np.testing.assert_array_equal(small, images)
    assert np.abs(small.astype(int) - large).mean() < 8.5


def test_mistakes_are_one_line(tmp_path):
    images, labels = by_class(drawn.digits(1, 20))
    (tmp_path / "empty").mkdir()
    (tmp_path / "set.txt").write_text("seven")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", a=images)
    np.savez(tmp_path / "objects.npz", images=images, labels=np.asarray([None] * 20))
    (tmp_path / "short.csv").write_text("7,0,0\n")
    write_folders(tmp_path / "folders", images, labels)
    (tmp_path / "folders" / str(labels[0]) / "x.png").write_bytes(b"no picture")
    for name in ("half", "damaged"):
        (tmp_path / name).mkdir()
        write_idx(tmp_path / name / "train-images-idx3-ubyte", images)
    (tmp_path / "damaged" / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\x20abc")
    for name, message in (
        ("nothing", "No such file"),
        ("empty", "neither IDX files nor folders"),
        ("set.txt", "expected a folder, an .npz or a .csv"),
        ("bad.npz", "not a readable .npz"),
        ("other.npz", "found a"),
        ("objects.npz", "must hold plain numbers"),
        ("short.csv", "line 1: 2 pixels instead of 784"),
        ("folders", "1 of its files can't be read as pictures.*/x.png"),
        ("half", "no IDX file of the train labels"),
        ("damaged", "damaged"),
    ):
        with pytest.raises(UserError, match=message) as error:
            own.read(tmp_path / name)
        assert "\n" not in str(error.value)
        assert name.partition(".")[0] in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(4, int)}, "1 classes; 2 to 256"),
        ({"labels": np.arange(3)}, "one for each image"),
        ({"labels": np.asarray([0.5, 1, 2, 3])}, "whole numbers or names"),
        ({"images": np.zeros((4, 28, 27), np.uint8)}, r"\[N, 28, 28\], not \[4, 28, 27\]"),
        ({"images": np.full((4, 28, 28), 7.0)}, r"lie in \[0, 1\]"),
        ({"test": (np.zeros((1, 28, 28), np.uint8), np.asarray([9]))}, "'9' is in the test part"),
    ],
)
def test_arrays_that_do_not_fit(change, message):
    arrays = {"images": drawn.digits(1, 4).images, "labels": np.arange(4)} | change
    with pytest.raises(UserError, match=message):
        own.of_arrays(**arrays)


def measured(workdir):
    """The rows of metrics.jsonl without times, and the summary's test figures."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((workdir / "summary.json").read_text())
    kept = [{key: x for key, x in row.items() if key != "seconds"} for row in rows]
    return kept, summary["test"], summary["data"] | {"source": "", "test_source": ""}


@pytest.fixture
def small(cache):
    """A config of a small network, whose data are to be named."""
    config = shrink(digits_jax.get_config("mnist:mlp10"), cache)
    config.data.update(train=0, test=0)
    return config


def test_every_form_trains_bit_for_bit_alike(tmp_path, small, unpictured):
    train = by_class(drawn.digits(1, 240))
    results = {}
    for form, path in every_form(tmp_path, train).items():
        small.data.source = str(path)
        digits_jax.train(small, tmp_path / "runs" / form)
        results[form] = measured(tmp_path / "runs" / form)
    small.data.source = "auto"
    run = digits_jax.train(small, tmp_path / "runs" / "arrays", data=train)
    results["arrays"] = measured(tmp_path / "runs" / "arrays")
    first, *others = results.values()
    assert all(other == first for other in others), results
    facts = run.summary["data"]
    assert facts["held_out"]
    assert facts["test"] == sum(round(n / 6) for n in np.bincount(train[1]))
    assert facts["train"] + facts["validation"] + facts["test"] == 240
    assert facts["sha256"] == own.of_arrays(*train).digest
    assert facts["classes"] == {"digit": list("0123456789")}
    images, labels = np.asarray(train[0]), train[1].copy()
    labels[0] += 1
    with pytest.raises(UserError, match="holds other data"):
        digits_jax.train(small, tmp_path / "runs" / "arrays", data=(images, labels))


def test_a_run_does_not_go_on_with_other_data(tmp_path, small, unpictured):
    images, labels = by_class(drawn.digits(1, 120))
    small.data.source, small.optimizer.schedule = str(tmp_path / "set.npz"), "constant"
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    digits_jax.train(small, tmp_path / "run")
    np.savez(tmp_path / "set.npz", images=images, labels=labels[::-1])
    small.epochs += 1
    with pytest.raises(UserError, match=r"holds a run of another config .*data\.sha256"):
        digits_jax.train(small, tmp_path / "run")
    small.epochs -= 1
    with pytest.raises(UserError, match=r"data\.sha256"):  # nor is it finished
        digits_jax.train(small, tmp_path / "run")
    with pytest.raises(UserError, match="not those that this run was trained on"):
        evaluate(small, tmp_path / "run", None, "auto")


def test_the_same_data_by_another_path_is_the_same_run(tmp_path, small, unpictured, monkeypatch):
    images, labels = by_class(drawn.digits(1, 120))
    monkeypatch.chdir(tmp_path)
    digits_jax.train(small, "run", data=(images, labels))
    digits_jax.train(small, tmp_path / "run", data=(images, labels))  # finished
    (tmp_path / "there").mkdir()
    (tmp_path / "run").rename(tmp_path / "there" / "moved")
    monkeypatch.chdir(tmp_path / "there")
    evaluate(small, tmp_path / "there" / "moved", None, "auto")
    with pytest.raises(UserError, match="holds other data"):
        digits_jax.train(small, "moved", data=(images[1:], labels[1:]))
    (tmp_path / "mine").mkdir()
    np.savez(tmp_path / "mine" / "data.npz", other=images)
    with pytest.raises(UserError, match=r"data\.npz"):
        digits_jax.train(small, tmp_path / "mine", data=(images, labels))


def test_some_of_a_set_that_stands_class_by_class_has_all_classes(tmp_path, small):
    images, labels = by_class(drawn.digits(1, 240))
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    small.data.update(source=str(tmp_path / "set.npz"), train=60, test=20)
    found = dataset.load(small.data)
    for split, n in ((found.train, 60), (found.test, 20)):
        assert split.size == n
        assert len(np.unique(dataset.labels(split, found.recipe)["digit"])) > 7


def test_a_class_of_one_example_needs_a_test_part(tmp_path, small):
    images, labels = by_class(drawn.digits(1, 30))
    np.savez(tmp_path / "set.npz", images=images, labels=np.where(np.arange(30) == 3, 77, labels))
    small.data.source = str(tmp_path / "set.npz")
    with pytest.raises(UserError, match="class '77' has one example"):
        dataset.load(small.data)


def test_a_held_out_part_has_a_sixth_of_each_class():
    labels = np.repeat([0, 1, 2], [60, 31, 2])
    held = recipes.hold_out(recipes.generator(0, "held_out"), labels, 1 / 6)
    assert np.bincount(labels[held]).tolist() == [10, 5, 1]
    assert (np.diff(held) > 0).all()
    other = recipes.hold_out(recipes.generator(1, "held_out"), labels, 1 / 6)
    assert not np.array_equal(held, other)


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def letters(seed, each):
    """`each` of every letter, in a font of Pillow's, moved and dimmed a little at random."""
    rng, font = np.random.default_rng(seed), ImageFont.load_default(20)
    images, labels = [], []
    for letter in LETTERS:
        for _ in range(each):
            image = Image.new("L", (28, 28))
            place = tuple(rng.uniform(13, 15, 2))
            brush = ImageDraw.Draw(image)
            brush.text(place, letter, fill=int(rng.integers(200, 256)), font=font, anchor="mm")
            images.append(np.asarray(image))
            labels.append(letter)
    return np.stack(images), np.asarray(labels)


@pytest.mark.parametrize("dataset", ["mnist", "mnist100", "two_digit"])
def test_letters_in_one_two_and_stacked(tmp_path, small, pictured, monkeypatch, dataset):
    """26 classes train, are reported by name, and read back."""
    train, test = letters(0, 16), letters(1, 3)
    small.data.dataset = dataset
    small.data.update(train=0 if dataset == "mnist" else 400, test=0 if dataset == "mnist" else 100)
    small.model.hidden = (64,)
    small.optimizer.update(name="adam", learning_rate=3e-3)
    small.epochs = 25 if dataset == "mnist" else 2
    run = digits_jax.train(small, tmp_path / "run", data=(*train, *test))
    heads = {"mnist": ("class",), "mnist100": ("pair",), "two_digit": ("upper", "lower")}[dataset]
    names = [a + b for a in LETTERS for b in LETTERS] if dataset == "mnist100" else list(LETTERS)
    assert run.classes == dict.fromkeys(heads, names) == run.summary["data"]["classes"]
    assert run.summary["data"]["source"].endswith("data.npz")
    assert not run.summary["data"]["held_out"]
    table = (tmp_path / "run" / "per_class.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table[1:]] == names * len(heads)
    if dataset == "mnist":
        found = run.predict(test[0]).labels["class"]
        assert np.mean(found == test[1]) > 0.8
        assert run.evaluate(test[0], found)["mean"] == 1
        assert run.evaluate(*test)["mean"] == np.mean(found == test[1])
        with pytest.raises(UserError, match="there is no 'ä'"):
            run.evaluate(test[0][:1], ["ä"])
        np.savez(tmp_path / "read.npz", images=test[0], labels=test[1])
        evaluate(small, tmp_path / "run", str(tmp_path / "read.npz"), "auto", tmp_path / "out")
        rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]
        assert [row.split(",")[4] for row in rows] == test[1].tolist()
    for name in ("confusion.png", "errors.png", "examples.png"):
        assert (tmp_path / "run" / name).stat().st_size > 5000
    if dataset == "mnist":
        pytest.importorskip("onnxruntime")
        exported = run.export(tmp_path)
        card = (exported / "README.md").read_text()
        assert ", ".join(LETTERS) in card
        assert str(tmp_path) not in card.partition("**Reads**")[2]
        assert digits_jax.load(exported / "model.npz").classes == run.classes
        monkeypatch.setattr("digits_jax.export.demo.site.runtime", lambda cache: cache)
        with pytest.raises(UserError, match="the page is for digits"):
            demo(run.config, tmp_path / "run", 0)
    evaluate(small, tmp_path / "run", None, "auto")
    read = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1].split(",")
    assert read[1] in names


def test_sources_that_do_not_go_together(tmp_path, small):
    np.savez(tmp_path / "letters.npz", images=letters(0, 2)[0], labels=letters(0, 2)[1])
    for fields, message in (
        ({"source": "nothing"}, "there is no 'nothing', neither a file"),
        ({"source": "fashion_mnits"}, "did you mean 'fashion_mnist'"),
        ({"source": str(tmp_path / "letters.npz"), "test_source": "drawn"}, "has other classes"),
        ({"source": str(tmp_path / "letters.npz"), "drawn_extra": 9}, "none of .*classes"),
    ):
        config = small.copy_and_resolve_references()
        config.data.update(fields)
        with pytest.raises(UserError, match=message):
            digits_jax.train(config, tmp_path / "run")


@pytest.mark.parametrize("name", list(named.NAMED))
def test_named_sets_from_a_folder_and_from_the_network(name, tmp_path, monkeypatch):
    """The official file layout, downloaded by tensorflow-datasets' manager in its place."""
    n = len(named.NAMED[name].classes)
    known, rng = named.NAMED[name]._replace(examples=(3 * n, n)), np.random.default_rng(0)
    monkeypatch.setitem(named.NAMED, name, known)
    arrays = {
        f"{known.prefix}{part}-{what}-idx{3 if what == 'images' else 1}-ubyte.gz": array
        for part, count in (("train", 3 * n), ("test" if known.prefix else "t10k", n))
        for what, array in (
            ("images", rng.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels", np.arange(count) % n),
        )
    }
    folder = tmp_path / "raw"
    folder.mkdir()
    for file, array in arrays.items():
        write_idx(folder / file, array)
        if known.prefix:  # one archive has them all
            write_idx(folder / f"emnist-letters-{file.removeprefix(known.prefix)}", array[:1])
    found = named.load(name, str(folder), tmp_path / "cache")
    images = arrays[f"{known.prefix}train-images-idx3-ubyte.gz"]
    upright = images.swapaxes(1, 2) if known.prefix else images
    np.testing.assert_array_equal(found.train.images, upright)
    np.testing.assert_array_equal(found.test.labels, np.arange(n))
    assert found.classes == known.classes

    urls = {f"http://x/{file}": folder / file for file in arrays}
    if known.prefix:
        with zipfile.ZipFile(tmp_path / "gzip.zip", "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"gzip/{file.name}")
        urls = {"http://x/gzip.zip": tmp_path / "gzip.zip"}

    class Manager:
        def __init__(self, *, url_infos, force_checksums_validation, dataset_name, download_dir):
            assert (url_infos.keys(), force_checksums_validation) == (urls.keys(), True)
            assert dataset_name == known.dataset

        def download(self, url):
            return urls[url]

    tfds = pytest.importorskip("tensorflow_datasets")
    infos = {url: types.SimpleNamespace(size=5.6e8 if known.prefix else 9) for url in urls}
    monkeypatch.setattr(tfds, "builder_cls", lambda _: types.SimpleNamespace(url_infos=infos))
    monkeypatch.setattr(tfds.download, "DownloadManager", Manager)
    fetched = named.load(name, "", tmp_path / "cache")
    assert fetched.digest == found.digest
    monkeypatch.setitem(named.NAMED, name, known._replace(examples=(60_000, 10_000)))
    with pytest.raises(UserError, match=f"does not hold {known.title}, whose parts have 60,000"):
        named.load(name, str(folder), tmp_path / "cache")
    monkeypatch.setitem(named.NAMED, name, known)
    monkeypatch.delattr(tfds.download, "DownloadManager")  # now from the cache
    assert named.load(name, "", tmp_path / "cache").digest == found.digest


def test_a_folder_without_the_named_set_and_a_machine_without_a_network(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no IDX file train-images of Fashion-MNIST"):
        named.load("fashion_mnist", str(tmp_path), tmp_path)
    tfds = pytest.importorskip("tensorflow_datasets")

    def refused(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tfds.download, "DownloadManager", refused)
    with pytest.raises(UserError, match=r"Kuzushiji-MNIST can't be downloaded.*raw_dir=DIR"):
        named.load("kmnist", "", tmp_path)
