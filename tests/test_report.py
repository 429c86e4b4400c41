"""Known answers, by hand, for all that a run writes down."""

import csv
import json
import math

import numpy as np
import pytest

from digits_jax import files
from digits_jax.errors import UserError
from digits_jax.report import artifacts


def log_of(*members):
    return np.log(np.array(members, np.float32))


def row(epoch, member=0, **more):
    return {
        "epoch": epoch, "member": member, "seed": member, "step": 10 * epoch,
        "learning_rate": 0.001, "loss": 1 / epoch, "accuracy": 0.5, "train_loss": 0.4,
        "train_accuracy": 0.6, "validation_loss": 0.5, "validation_accuracy": 0.55,
        "seconds": 1.0, **more,
    }  # fmt: skip


NAMES = {
    "digit": ["0", "1"],
    "upper": ["0", "1"],
    "lower": ["0", "1"],
    "number": [f"{n:02}" for n in range(100)],
}
# Two members, three examples, two heads of two classes.
LABELS = {"upper": np.array([0, 1, 1]), "lower": np.array([0, 0, 1])}
LOG_P = {
    "upper": log_of(
        [[0.8, 0.2], [0.4, 0.6], [0.6, 0.4]],  # right, right, wrong
        [[0.5, 0.5], [0.7, 0.3], [0.1, 0.9]],  # right (a tie goes to class 0), wrong, right
    ),
    "lower": log_of(
        [[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]],  # right, wrong, right
        [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]],  # all right
    ),
}


def test_metrics_of_two_heads_and_two_members_by_hand():
    result = artifacts.test_metrics(LABELS, LOG_P, NAMES)
    test = result["test"]
    assert test["examples"] == 3
    assert test["heads"] == pytest.approx({"upper": 4 / 6, "lower": 5 / 6})
    assert test["accuracy"] == pytest.approx(9 / 12)
    # Member 0 has both heads right on the first example only; member 1 on the first and third.
    assert test["all_heads"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    picked = [0.8, 0.6, 0.4, 0.5, 0.3, 0.9, 0.9, 0.3, 0.8, 0.9, 0.6, 0.8]
    assert test["loss"] == pytest.approx(-np.log(picked).mean(), abs=1e-6)
    first, second = result["members"]
    assert first["test"] == pytest.approx(4 / 6)
    assert second["test"] == pytest.approx(5 / 6)
    assert first["all_heads"] == pytest.approx(1 / 3)
    assert second["heads"] == pytest.approx({"upper": 2 / 3, "lower": 1})
    assert result["mean"] == pytest.approx(0.75)
    assert result["std"] == pytest.approx((1 / 6) / math.sqrt(2))
    # Averaged: upper 0.65, 0.45, 0.65 for the truth (one wrong); lower 0.9, 0.45, 0.8 (one wrong).
    assert result["ensemble"] == pytest.approx(4 / 6)


def test_headline():
    assert artifacts.headline(artifacts.test_metrics(LABELS, LOG_P, NAMES)) == (
        "66.67 and 83.33 % over 2 members, ensemble 66.67 % (upper 66.67 %, lower 83.33 %)"
    )
    # The first one again: 4/6, 5/6, 4/6, and t(0.975, 2) = 4.3027 times 0.0962 / sqrt(3).
    three = {head: log_p[[0, 1, 0]] for head, log_p in LOG_P.items()}
    assert artifacts.headline(artifacts.test_metrics(LABELS, three, NAMES)).startswith(
        "72.22 ± 9.62 % over 3 members (95 % interval ± 23.90), ensemble "
    )
    one = artifacts.test_metrics({"digit": np.array([1])}, {"digit": log_of([[0.25, 0.75]])}, NAMES)
    assert artifacts.headline(one) == "100.00 %"


def test_hardest_classes_are_pooled_over_members_and_named_by_head():
    hardest = artifacts.test_metrics(LABELS, LOG_P, NAMES)["hardest"]
    assert [entry["class"] for entry in hardest] == ["upper 1", "lower 0", "upper 0", "lower 1"]
    assert hardest[0] == {"class": "upper 1", "correct": 2, "total": 4, "accuracy": 0.5}
    assert hardest[1] == {"class": "lower 0", "correct": 3, "total": 4, "accuracy": 0.75}


def test_one_member_has_no_spread_and_no_ensemble():
    result = artifacts.test_metrics(
        {"digit": np.array([1])}, {"digit": log_of([[0.25, 0.75]])}, NAMES
    )
    assert result["std"] is None
    assert "ensemble" not in result
    assert result["test"]["accuracy"] == result["test"]["all_heads"] == result["mean"] == 1
    assert result["hardest"] == [{"class": "1", "correct": 1, "total": 1, "accuracy": 1.0}]


def test_only_the_ten_hardest_of_a_hundred_classes_in_order():
    labels = np.repeat(np.arange(100), 2)
    probabilities = np.full((200, 100), 0.001)
    probabilities[np.arange(200), labels] = 0.901
    for wrong in (14, 15, 60):  # class 07 loses both examples, class 30 one
        probabilities[wrong, labels[wrong]] = 0
        probabilities[wrong, 99] = 0.999
    result = artifacts.test_metrics(
        {"number": labels}, {"number": log_of(probabilities + 1e-9)}, NAMES
    )
    assert len(result["hardest"]) == 10
    assert [entry["class"] for entry in result["hardest"][:3]] == ["07", "30", "00"]
    assert result["test"]["accuracy"] == pytest.approx(197 / 200)


def test_per_class_csv(tmp_path):
    labels = {"number": np.array([7, 7, 30])}
    probabilities = np.full((2, 3, 100), 1e-6)
    probabilities[0, [0, 1, 2], [7, 8, 30]] = 0.9
    probabilities[1, [0, 1, 2], [7, 7, 30]] = 0.9
    artifacts.per_class(
        tmp_path / "per_class.csv", labels, {"number": log_of(*probabilities)}, NAMES
    )
    lines = (tmp_path / "per_class.csv").read_text().splitlines()
    assert lines[0] == "head,class,correct,total,accuracy"
    assert len(lines) == 101
    assert lines[1 + 7] == "number,07,3,4,0.750000"
    assert lines[1 + 30] == "number,30,2,2,1.000000"
    assert lines[1] == "number,00,0,0,"


def test_predictions_csv(tmp_path):
    log_p = {head: values[0] for head, values in LOG_P.items()}
    artifacts.write_predictions(
        tmp_path / "p.csv", log_p, NAMES, LABELS, names=["a.png", "b.png", "c,d.png"]
    )
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[2] == {
        "index": "2", "image": "c,d.png",
        "upper": "0", "upper_probability": "0.600000", "upper_label": "1", "upper_correct": "0",
        "lower": "1", "lower_probability": "0.800000", "lower_label": "1", "lower_correct": "1",
    }  # fmt: skip
    artifacts.write_predictions(tmp_path / "p.csv", log_p, NAMES)
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert header == "index,upper,upper_probability,lower,lower_probability"


def test_json_is_whole_and_knows_no_nan(tmp_path):
    path = tmp_path / "summary.json"
    values = {"x": np.float32(0.5), "n": np.int64(3), "nan": np.array([np.nan, 1]), "t": (1, None)}
    files.write_json(path, values | {"inf": -math.inf, "0": Ellipsis is None})
    assert path.read_text().endswith("}\n")
    expected = {"x": 0.5, "n": 3, "nan": [None, 1.0], "t": [1, None], "inf": None, "0": False}
    assert json.loads(path.read_text()) == expected
    with pytest.raises(TypeError):
        files.write_json(path, {"what": object()})
    assert json.loads(path.read_text()) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_rows_survive_a_torn_line_and_a_rewind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert artifacts.read_rows(path) == []
    files.append_rows(path, [row(1), row(1, 1)])
    files.append_rows(path, [row(2), row(2, 1, loss=math.nan)])
    assert artifacts.read_rows(path)[3]["loss"] is None
    with open(path, "a") as file:
        file.write('{"epoch": 3, "mem')
    assert len(artifacts.read_rows(path)) == 4
    assert artifacts.rewind(path, 1) == [row(1), row(1, 1)]
    files.append_rows(path, [row(2), row(2, 1)])
    assert artifacts.read_rows(path) == [row(1), row(1, 1), row(2), row(2, 1)]
    assert path.read_text().count("\n") == 4
    path.write_text("torn\n" + path.read_text())
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1 is not a row of JSON"):
        artifacts.read_rows(path)


def scalars(folder):
    """{tag: [(step, value), ...]} of the event files directly in `folder`."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore")  # tensorboard's own
def test_event_files_begin_anew_and_continue(tmp_path):
    with artifacts.EventWriter(tmp_path) as first:
        first.append([row(1)])
        first.append([row(2)])
    with artifacts.EventWriter(tmp_path, [row(1)]) as second:
        second.append([row(2, loss=0.25, validation_loss=None)])
    read = scalars(tmp_path / "tensorboard")
    assert read["loss/as_trained"] == [(10, 1.0), (20, 0.25)]
    assert read["loss/validation"] == [(10, 0.5)]
    assert read["accuracy/train"] == [(10, 0.6), (20, 0.6)]
    assert read["accuracy/validation"] == [(10, 0.55), (20, 0.55)]
    assert read["learning_rate"] == [(10, 0.001), (20, 0.001)]


@pytest.mark.filterwarnings("ignore")
def test_event_files_have_a_sub_run_per_member(tmp_path):
    with artifacts.EventWriter(tmp_path, [row(1, member) for member in range(11)]) as events:
        events.append([row(2, 10, accuracy=1.0)])
    folders = sorted(path.name for path in (tmp_path / "tensorboard").iterdir())
    assert folders == [f"member_{member:02d}" for member in range(11)]
    assert scalars(tmp_path / "tensorboard/member_10")["accuracy/as_trained"] == [
        (10, 0.5),
        (20, 1),
    ]


def summary_of(**more):
    return {
        "device": "cpu", "epochs": 2, "data": {"dataset": "two_digit", "source": "mnist"},
        "model": {"name": "cnn", "parameters": 390164}, "seconds": {"total": 90},
        "train": {"accuracy": 0.99}, "validation": {"accuracy": 0.9765},
        "members": [
            {"seed": 0, "best_epoch": 2, "validation": 0.97},
            {"seed": 1, "best_epoch": 1, "validation": 0.98},
        ],
        **more,
    }  # fmt: skip


def test_write_leaves_the_whole_folder(tmp_path):
    images = np.zeros((3, 42, 28), np.uint8)
    rows = [row(1), row(1, 1), row(2), row(2, 1)]
    summary = artifacts.write(tmp_path, summary_of(), rows, NAMES, LABELS, LOG_P, images)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["members"][1]["seed"] == 1
    assert summary["members"][1]["test"] == pytest.approx(5 / 6)
    assert {path.name for path in tmp_path.iterdir()} == {
        "summary.json", "curves.png", "confusion.png", "errors.png", "per_class.csv",
    }  # fmt: skip


def test_write_without_the_test_split(tmp_path):
    summary = artifacts.write(tmp_path, summary_of(), [row(1)], NAMES)
    assert summary == summary_of()
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "curves.png"}


def test_calibration_by_hand():
    """Members 0.9 and 0.6 sure, both right on one of two: ECE 0.4 and 0.1; sharper by T = 0.5."""
    labels = {"digit": np.array([0, 1])}
    log_p = {"digit": log_of([[0.9, 0.1]] * 2, [[0.6, 0.4]] * 2)}
    figures, diagrams = artifacts.calibration(labels, log_p, np.array([1.0, 0.5, 1.0]))
    assert figures["ece"] == pytest.approx((0.4 + 0.1) / 2)
    sharper = 0.36 / (0.36 + 0.16)
    assert figures["ece_tempered"] == pytest.approx((0.4 + sharper - 0.5) / 2)
    assert figures["ensemble"]["ece"] == pytest.approx(0.25)
    assert figures["temperature"] == 0.75
    assert list(diagrams) == ["members", "ensemble"]
    assert diagrams["members"][0].examples.sum() == 4


def test_temperatures_of_members_and_ensemble():
    """Where each member has its own labels there is no ensemble to fit: the mean stands for it."""
    rng = np.random.default_rng(0)
    log_p = {"digit": np.log(rng.dirichlet(np.ones(3), (2, 50)))}
    shared = {"digit": rng.integers(0, 3, 50)}
    one, two, together = artifacts.fit_temperatures(shared, log_p)
    own = artifacts.fit_temperatures({"digit": np.stack([shared["digit"]] * 2)}, log_p)
    np.testing.assert_allclose(own, [one, two, (one + two) / 2])
    assert together != pytest.approx((one + two) / 2)
