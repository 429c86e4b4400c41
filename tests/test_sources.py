"""Reading, checking, caching and downloading MNIST, on tiny stand-ins for its four files."""

import gzip
import hashlib
import http.server
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from digits_jax.data import sources
from digits_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
REAL = pathlib.Path(os.environ.get("DIGITS_JAX_MNIST", ROOT.parent / "shared" / "mnist"))
IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def arrays(monkeypatch):
    """Tiny arrays, which FILES now expects."""
    rng = np.random.default_rng(0)
    shapes = [(3, 28, 28), (3,), (2, 28, 28), (2,)]
    arrays = [rng.integers(10, size=shape, dtype=np.uint8) for shape in shapes]
    digests = [hashlib.sha256(idx(array)).hexdigest() for array in arrays]
    files = dict(zip(sources.FILES, zip(shapes, digests, strict=True), strict=True))
    monkeypatch.setattr(sources, "FILES", files)
    return arrays


@pytest.fixture
def raw(tmp_path, arrays):
    """A folder with the four .gz files."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, array in zip(sources.FILES, arrays, strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return folder


@pytest.fixture
def no_download(monkeypatch):
    def refuse():
        raise UserError("no download")

    monkeypatch.setattr(sources, "download", refuse)


def idx(array):
    """By hand: magic 0x0801 for labels, 0x0803 for images, then big-endian lengths."""
    magic = {1: b"\0\0\x08\x01", 3: b"\0\0\x08\x03"}[array.ndim]
    return magic + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def assert_same(digits, arrays):
    train, test = digits
    for found, expected in zip([*train, *test], arrays, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint8
        assert not found.flags.writeable


def test_reads_gz_and_plain_files(raw, tmp_path, arrays):
    assert_same(sources.load(str(raw), tmp_path / "a"), arrays)
    for path in list(raw.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert_same(sources.load(str(raw), tmp_path / "b"), arrays)


def names_of_others(raw, place):
    """The four files as others name, pack and lay them out."""
    for path in list(raw.iterdir()):
        content, stem = gzip.decompress(path.read_bytes()), path.name.removesuffix(".gz")
        path.unlink()
        windows = stem.replace("-idx", ".idx")
        target, data = {
            "windows": (raw / windows, content),
            "windows, packed": (raw / f"{windows}.gz", gzip.compress(content)),
            "kaggle": (raw / stem / stem, content),
            "kaggle, other names": (raw / windows / windows, content),
            "torchvision": (raw / "MNIST" / "raw" / stem, content),
            "torchvision's inner folder": (raw / "raw" / f"{stem}.gz", gzip.compress(content)),
            "unpacked under the packed name": (raw / f"{stem}.gz", content),
            "packed under the unpacked name": (raw / stem, gzip.compress(content)),
        }[place]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


@pytest.mark.parametrize(
    "place",
    [
        "windows",
        "windows, packed",
        "kaggle",
        "kaggle, other names",
        "torchvision",
        "torchvision's inner folder",
        "unpacked under the packed name",
        "packed under the unpacked name",
    ],
)
def test_reads_the_files_as_others_keep_them(place, raw, tmp_path, arrays):
    names_of_others(raw, place)
    assert_same(sources.load(str(raw), tmp_path), arrays)


def test_of_several_copies_the_right_one_counts(raw, tmp_path, arrays):
    """Beside damaged, foreign and unreadable ones that come first, and a folder of that name."""
    (raw / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(arrays[0] ^ 1)))
    (raw / IMAGES).mkdir()
    (raw / IMAGES / IMAGES).write_bytes(b"no image")
    (raw / "MNIST" / "raw").mkdir(parents=True)
    (raw / "MNIST" / "raw" / IMAGES).write_bytes(idx(arrays[0]))
    assert_same(sources.load(str(raw), tmp_path), arrays)
    (raw / "MNIST" / "raw" / IMAGES).unlink()
    with pytest.raises(UserError, match=f"{IMAGES}.gz is whole, but not MNIST's"):
        sources.load(str(raw), tmp_path)


def test_raw_dir_prepares_the_cache(raw, tmp_path, arrays, no_download):
    sources.load(str(raw), tmp_path)
    assert sorted(p.name for p in (tmp_path / "mnist").iterdir()) == sorted(
        f"{name}.npy" for name in sources.FILES
    )
    assert_same(sources.load("", tmp_path), arrays)


def test_raw_dir_wins_over_the_cache(raw, tmp_path):
    sources.load(str(raw), tmp_path)
    (raw / f"{IMAGES}.gz").unlink()
    with pytest.raises(UserError, match=IMAGES):
        sources.load(str(raw), tmp_path)


def damage(raw, how):
    path = raw / f"{IMAGES}.gz"
    content = gzip.decompress(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated gzip":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "a web page":
        path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    elif how == "two bytes":
        path.write_bytes(b"\0\1")
    elif how == "flipped gzip byte":
        packed = bytearray(path.read_bytes())
        packed[len(packed) // 2] ^= 1
        path.write_bytes(bytes(packed))
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "wrong magic":
        path.write_bytes(gzip.compress(b"\0\0\x08\x01" + content[4:]))
    elif how == "wrong shape":
        path.write_bytes(gzip.compress(content[:4] + b"\0\0\0\x04" + content[8:]))
    elif how == "short":
        path.write_bytes(gzip.compress(content[:-1]))
    elif how == "bomb":
        path.write_bytes(gzip.compress(content + bytes(50_000_000)))
    elif how == "altered":
        path.write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
    elif how == "fewer":
        path.write_bytes(idx(np.zeros((1, 28, 28), np.uint8)))
    elif how == "more":  # as EMNIST's: not even read to the end
        path.write_bytes(gzip.compress(idx(np.zeros((1124, 28, 28), np.uint8))))
    elif how == "labels":
        path.write_bytes(idx(np.zeros(3, np.uint8)))
    elif how == "floats":
        path.write_bytes(b"\0\0\x0d" + content[3:] + bytes(3 * (len(content) - 16)))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", f"no {IMAGES}.gz"),
        ("truncated gzip", r"ended before.*; fetch it again.* found 2,3\d\d with [0-9a-f]{64}"),
        ("a web page", "is no IDX file"),
        ("two bytes", "is no IDX file"),
        ("flipped gzip byte", "can't be read.*; fetch it again"),
        ("empty", "was cut short; fetch it again"),
        ("wrong magic", "does not hold what its header says; fetch it again"),
        ("wrong shape", "does not hold what its header says; fetch it again"),
        ("short", "was cut short; fetch it again"),
        ("bomb", "goes on where.*; fetch it again.*found more"),
        (
            "altered",
            "is whole, but not MNIST's: altered.*data.source=FOLDER trains; choose a folder",
        ),
        ("fewer", r"another data set's \(1 x 28 x 28, not 3 x 28 x 28\); choose a folder"),
        ("more", r"another data set's \(1,124 x 28 x 28, not 3 x 28 x 28\).*found more"),
        ("labels", r"another data set's \(3, not 3 x 28 x 28\); choose a folder"),
        ("floats", r"another data set's \(3 x 28 x 28 of type 0x0d, not 3 x 28 x 28\)"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(raw, tmp_path, how, says):
    damage(raw, how)
    with pytest.raises(UserError, match=says) as error:
        sources.load(str(raw), tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert IMAGES in message
    assert str(raw) in message
    assert "delete" not in message
    if how != "missing":
        assert sources.FILES[IMAGES][1] in message
    assert not (tmp_path / "mnist").exists()


@pytest.mark.parametrize("how", ["altered", "truncated", "empty", "pickle", "dtype", "garbage"])
def test_a_damaged_cache_is_rebuilt_and_says_so(
    how, raw, tmp_path, arrays, monkeypatch, caplog, no_download
):
    sources.load(str(raw), tmp_path)
    path = tmp_path / "mnist" / f"{IMAGES}.npy"
    content = path.read_bytes()
    if how == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "truncated":
        path.write_bytes(content[:-100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "pickle":
        np.save(path, np.array([{}], object))
    elif how == "dtype":
        np.save(path, arrays[0].view(np.int8))
    elif how == "garbage":
        path.write_bytes(content[:12] + b"(((" + content[15:])
    with pytest.raises(UserError, match="no download"):
        sources.load("", tmp_path)
    assert f"{path} is damaged or altered; it is written again" in caplog.text

    monkeypatch.setattr(sources, "download", lambda: sources.read(str(raw)))
    assert_same(sources.load("", tmp_path), arrays)
    monkeypatch.setattr(sources, "download", None)
    caplog.clear()
    assert_same(sources.load("", tmp_path), arrays)  # whole again
    assert not caplog.text


def test_a_cache_that_cannot_be_written_fails_no_run(raw, tmp_path, arrays, caplog):
    (tmp_path / "file").write_text("in the way")
    assert_same(sources.load(str(raw), tmp_path / "file"), arrays)
    assert "can't be cached" in caplog.text


def test_a_full_disk_leaves_nothing_behind(raw, tmp_path, arrays, monkeypatch, caplog):
    def full(file, array, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    assert_same(sources.load(str(raw), tmp_path), arrays)
    assert "No space left" in caplog.text
    assert not list((tmp_path / "mnist").iterdir())


@pytest.fixture
def tfds(tmp_path, monkeypatch):
    """tensorflow-datasets with a folder of its own and no proxy; `serve` says where MNIST is."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("NO_PROXY", "*")

    def serve(address):
        urls = {f"http://{address[0]}:{address[1]}/{name}.gz": None for name in sources.FILES}
        monkeypatch.setattr(tfds, "builder_cls", lambda _: types.SimpleNamespace(url_infos=urls))

    return types.SimpleNamespace(serve=serve, builder_cls=tfds.builder_cls)


def left_overs(tmp_path):
    """The files and folders of what is under way."""
    found = (tmp_path / "tfds").rglob("*")
    return [path for path in found if ".tmp." in path.name or path.name.startswith("digits_jax")]


@pytest.fixture
def server(raw, tfds):
    """Serves the four files until it is closed."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(raw))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        tfds.serve(server.server_address)

        def close():
            server.shutdown()
            thread.join()

        yield types.SimpleNamespace(close=close)
        close()


def test_downloads_once(server, tmp_path, arrays, capfd, caplog):
    caplog.set_level(logging.INFO)
    assert_same(sources.load("", tmp_path / "a"), arrays)
    server.close()
    assert_same(sources.load("", tmp_path / "a"), arrays)  # from the cache
    assert_same(sources.load("", tmp_path / "b"), arrays)  # from tfds' folder
    kept = sorted(path.name for path in (tmp_path / "tfds" / "downloads" / "mnist").iterdir())
    assert len(kept) == 8
    assert kept[1::2] == [f"{name}.INFO" for name in kept[::2]]
    assert not left_overs(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert "ownload" not in caplog.text


def test_a_damaged_download_is_fetched_anew(server, tmp_path, arrays, caplog):
    sources.load("", tmp_path / "a")
    kept = sorted((tmp_path / "tfds" / "downloads" / "mnist").glob("*.gz"))
    kept[0].write_bytes(kept[0].read_bytes()[:-30])
    assert_same(sources.load("", tmp_path / "b"), arrays)
    assert f"downloaded anew: {kept[0]} can't be read" in caplog.text
    caplog.clear()
    server.close()
    assert_same(sources.load("", tmp_path / "c"), arrays)
    assert not caplog.text


def test_processes_that_download_at_once_keep_out_of_each_others_way(
    server, tmp_path, arrays, monkeypatch
):
    """Another one's files under way, which came after the start, outlive a download that fails."""
    folder = tmp_path / "tfds" / "downloads" / "mnist"
    theirs = [folder / "x.gz.tmp.0" / "x.gz", folder / "digits_jax.0" / "x.gz.tmp.0" / "x.gz"]
    read = sources._read_idx

    def fails(path, name):
        for other in theirs:
            other.parent.mkdir(parents=True)
            other.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "_read_idx", fails)
    with pytest.raises(UserError, match="OSError: No space left on device"):
        sources.load("", tmp_path)
    assert [other.read_bytes() for other in theirs] == [b"half"] * 2
    assert {path.name for path in folder.iterdir()} == {"x.gz.tmp.0", "digits_jax.0"}
    monkeypatch.setattr(sources, "_read_idx", read)
    assert_same(sources.load("", tmp_path), arrays)
    assert [other.read_bytes() for other in theirs] == [b"half"] * 2


def test_reuses_what_tfds_downloaded_before(raw, tmp_path, arrays, tfds, monkeypatch):
    """The names under which tfds itself keeps the official files, which it finds by checksum."""
    import requests
    from tensorflow_datasets.core.download import resource

    folder = tmp_path / "tfds" / "downloads" / "mnist"
    folder.mkdir(parents=True)
    for url, info in tfds.builder_cls("mnist").url_infos.items():
        path = folder / resource.get_dl_fname(url, info.checksum)
        path.write_bytes((raw / url.rpartition("/")[2]).read_bytes())
        path.with_suffix(".gz.INFO").write_text(json.dumps({"urls": [url]}))
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", None)
    assert_same(sources.load("", tmp_path), arrays)
    folder.rename(folder.with_name("fashion"))  # whatever the name of the data set was
    assert_same(sources.load("", tmp_path / "again"), arrays)


@pytest.mark.parametrize("how", ["refused", "dropped packets", "stalled", "hung name look-up"])
def test_without_a_network_it_gives_up_and_names_the_ways_out(how, tmp_path, tfds, monkeypatch):
    assert sources.PATIENCE <= 10  # leaves time to import tfds within the 15 s
    monkeypatch.setattr(sources, "PATIENCE", 0.3)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        tfds.serve(server.getsockname())
        if how == "refused":
            server.close()
        elif how == "hung name look-up":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: done.wait(20) and [])
        elif how == "stalled":

            def answer():
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")
                    done.wait(20)

            threading.Thread(target=answer).start()
        start = time.monotonic()
        with pytest.raises(UserError) as error:
            sources.load("", tmp_path)
        assert error.value.__suppress_context__  # not a hundred lines for one
        assert time.monotonic() - start < 5
        done.set()
    message = str(error.value)
    assert "\n" not in message
    for way in ["--config.data.raw_dir=DIR", "--config.data.source=drawn", "internet"]:
        assert way in message
    assert not left_overs(tmp_path)


def test_without_a_network_the_program_ends_too(tmp_path):
    """No thread of the downloader may keep the interpreter waiting."""
    code = (
        "import pathlib, socket, threading\n"
        "socket.getaddrinfo = lambda *args, **kwargs: threading.Event().wait(60)\n"
        "from digits_jax.data import sources\n"
        "sources.PATIENCE = 0.3\n"
        f"sources.load('', pathlib.Path({str(tmp_path)!r}))\n"
    )
    env = os.environ | {"TFDS_DATA_DIR": str(tmp_path), "NO_PROXY": "*"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT, env=env
    )
    assert "TimeoutError" in out.stderr.splitlines()[-1]
    assert out.stderr.count("Traceback") == 1


def test_a_home_that_is_not_there_is_one_line_that_names_the_field(tmp_path, tfds, monkeypatch):
    nobody = "~nobody-of-that-name"
    with pytest.raises(UserError, match=rf"data\.raw_dir={nobody}/x: .* give the full path"):
        sources.load(f"{nobody}/x", tmp_path)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", nobody)
    with pytest.raises(UserError, match=rf"TFDS_DATA_DIR={nobody}.* give the full path"):
        sources.load("", tmp_path)


@pytest.mark.skipif(
    not REAL.is_dir(), reason="no MNIST: set DIGITS_JAX_MNIST to the folder of its four files"
)
def test_the_real_digits(tmp_path):
    sources.load(str(REAL), tmp_path)
    start = time.monotonic()
    train, test = sources.load("", tmp_path)
    assert time.monotonic() - start < 2
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(test.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
    assert round(train.images.mean() / 255, 4) == 0.1307
