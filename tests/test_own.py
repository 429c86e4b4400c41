"""Sets of the user's own: the same arrays from every form, and mistakes in one line."""

import gzip

import numpy as np
import pytest
from PIL import Image

from digits_jax.data import drawn, own
from digits_jax.errors import UserError


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
    assert np.abs(small.astype(int) - large).mean() < 8


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
