"""Files are whole or not there; a damaged array is None."""

import numpy as np
import pytest

from digits_jax import files


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "text.md"
    files.write_text(path, "eins\nzwei ±\n")
    assert path.read_bytes() == "eins\nzwei ±\n".encode()

    def stopped():
        with files.replacing(path, "w") as file:
            file.write("half")
            assert path.read_text(encoding="utf-8").startswith("eins")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text(encoding="utf-8") == "eins\nzwei ±\n"
    assert list(tmp_path.iterdir()) == [path]  # no part is left


def test_an_error_of_the_folder_is_the_one_that_is_raised(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        files.write_text(tmp_path / "none" / "text.md", "")


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "cut", "header", "pickle", "zip"])
def test_a_damaged_array_is_none(tmp_path, damage):
    path, array = tmp_path / "new" / "array.npy", np.arange(6, dtype=np.uint8).reshape(2, 3)
    files.write_array(path, array)
    np.testing.assert_array_equal(files.read_array(path), array)
    whole = path.read_bytes()
    match damage:
        case "missing" | "folder":
            path.unlink()
            if damage == "folder":
                path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[:-1])
        case "header":
            path.write_bytes(whole[:12] + b"(((" + whole[15:])
        case "pickle":
            np.save(path, np.array([{}], object))
        case "zip":
            with path.open("wb") as file:
                np.savez(file, array=array)
    assert files.read_array(path) is None
