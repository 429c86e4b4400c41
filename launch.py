"""Trains what a config describes, or looks at it in another mode.

python launch.py --config=configs/mnist100.py[:variant] [--workdir=DIR] [--config.field=value ...]
"""

import errno
import os
import re
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from digits_jax.errors import SAVED, Stopped, UserError, check_choice, nearest

_NO_RUNS = ("__init__", "base")  # what else lies in configs/
MODES = (
    *("train", "eval", "epochs", "pairs", "robustness", "describe", "explain", "compare"),
    *("search", "export", "demo"),
)
TRAINING = ("train", "compare", "search")
_LOOKING = ("eval", "epochs", "pairs", "robustness", "explain", "export", "demo")
_ONLY: tuple[tuple[str, ...], ...] = (
    ("out", *_LOOKING),
    *(("data", "eval"), ("ink", "eval"), ("example", "explain"), ("port", "demo")),
    *(("variants", "compare"), ("runs", "compare")),
    *(("distributed", "train"), ("coordinator", "train")),
    *(("num_processes", "train"), ("process_id", "train")),
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run: configs/NAME.py[:variant].", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Its folder; default runs/NAME[-variant]. mode=compare: of all; default runs."
)
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
_OUT = flags.DEFINE_string(
    "out", None, f"mode={', '.join(_LOOKING)}: the folder to write into, instead of the workdir."
)
_DATA = flags.DEFINE_string(
    "data", None, "mode=eval: your own images, a .npz, a .png or a folder of .png files."
)
_EXAMPLE = flags.DEFINE_integer("example", 0, "mode=explain: which of the test images, from 0.")
_VARIANTS = flags.DEFINE_list(
    "variants", [], "mode=compare: which variants of the config, in this order."
)
_RUNS = flags.DEFINE_list(
    "runs",
    [],
    "mode=compare: two finished runs to test against each other; a --config only says where the "
    "digits are then: data.raw_dir and data.cache_dir.",
)
_INK = flags.DEFINE_string("ink", "auto", "The ink of --data: auto, bright or dark.")
_PORT = flags.DEFINE_integer("port", 8000, "mode=demo: of 127.0.0.1; 0 takes a free one.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, as the cluster's environment says."
)
_BY_HAND: tuple[Any, ...] = (
    flags.DEFINE_string("coordinator", None, "--distributed by hand: HOST:PORT of process 0."),
    flags.DEFINE_integer(
        "num_processes", None, "With --coordinator: how many processes there are."
    ),
    flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0."),
)


def main(argv: list[str]) -> None:
    """Dispatches to the mode; the heavy imports wait until the flags are known to be right."""
    if len(argv) > 1:
        raise UserError(f"'{argv[1]}' is not a flag; flags look like --config=configs/mnist100.py")
    check_choice("--mode", _MODE.value, MODES)
    for flag, *modes in _ONLY:
        if flags.FLAGS[flag].present and _MODE.value not in modes:
            raise UserError(f"--{flag} is for --mode={', '.join(modes)}")
    if _RUNS.value:
        if len(_RUNS.value) != 2:
            raise UserError("--runs names two folders, for example --runs=runs/mnist,results/mnist")
        places = _places()
        from digits_jax.analysis.compare import compare_runs

        _start(_CONFIG.value or ConfigDict({"data": {"cache_dir": ""}}))
        first, second = _RUNS.value
        compare_runs(first, second, _WORKDIR.value, places)
        return
    if _CONFIG.value is None:
        raise UserError("say what to run, for example --config=configs/mnist100.py")
    config = _CONFIG.value
    if _MODE.value in TRAINING:
        from digits_jax.devices.signals import Interrupts, exit_at_once

        exit_at_once()  # until a run listens itself, and once it only reports
    if _MODE.value == "train":
        workdir = _workdir()
        if _distributed() and not workdir:
            raise UserError("several processes need --workdir, a folder that all of them share")
        with _together(workdir) as interrupts:  # before JAX looks for devices
            from digits_jax.training.train import train

            _start(config)
            train(config, workdir, interrupts or Interrupts)
        return
    _start(config)
    match _MODE.value:
        case "eval":
            from digits_jax.analysis.evaluate import evaluate

            evaluate(config, _finished(config), _DATA.value, _INK.value, _OUT.value)
        case "epochs":
            from digits_jax.analysis.best_test_epoch import best_test_epoch

            best_test_epoch(config, _finished(config), _OUT.value)
        case "pairs":
            from digits_jax.analysis.more_pairs import more_pairs

            more_pairs(config, _finished(config), _OUT.value)
        case "robustness":
            from digits_jax.analysis.robustness import robustness

            robustness(config, _finished(config), _OUT.value)
        case "describe":
            from digits_jax.analysis.describe import describe

            describe(config)
        case "explain":
            from digits_jax.analysis.explain import explain

            explain(config, _finished(config), _EXAMPLE.value, _OUT.value)
        case "export":
            from digits_jax.export.export import export

            export(config, _finished(config), _OUT.value)
        case "demo":
            from digits_jax.export.export import demo

            demo(config, _finished(config), _PORT.value, _OUT.value)
        case "compare":
            variants = _variants()
            from digits_jax.analysis.compare import compare

            compare(variants, _workdir(), Path(_config_path()).stem, Interrupts)
        case "search":
            from digits_jax.search.search import search

            search(config, _workdir(), Interrupts)


def _start(config: ConfigDict) -> None:
    """Prepares this process: how it logs, where compiled programs are kept."""
    from digits_jax.data.batches import cache_dir
    from digits_jax.devices import backend

    backend.start(cache_dir(config.data))


def _workdir() -> Path | None:
    """The one that was given."""
    return Path(_WORKDIR.value) if _WORKDIR.value else None


def _finished(config: ConfigDict) -> Path:
    """Where the run of `config` lies that a mode reads."""
    from digits_jax import settings

    own = Path("runs") / config.name
    there = [path for path in (own, settings.apart(own)) if (path / "config.json").exists()]
    return _workdir() or (there or [own])[0]


def _distributed() -> bool:
    return _DISTRIBUTED.value or any(flag.value is not None for flag in _BY_HAND)


def _together(workdir: Path | None) -> AbstractContextManager[Any]:
    """With the other processes of this run, if there are any; -> what listens to signals then."""
    if not (workdir and _distributed()):
        return nullcontext()
    from digits_jax.devices import backend, hosts

    backend.quiet()
    coordinator, processes, process = (flag.value for flag in _BY_HAND)
    return hosts.joined(workdir, coordinator, processes, process)


def _config_path() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]


def _places() -> dict[str, str] | None:
    """Where the digits of --runs are, if a --config says so; it can say nothing else of them."""
    given = config_flags.get_override_values(flags.FLAGS["config"]) if _CONFIG.value else {}
    if _VARIANTS.value or given.keys() - {"data.raw_dir", "data.cache_dir"}:
        raise UserError(
            "--runs goes without --variants, and of --config with data.raw_dir and data.cache_dir "
            "alone: its runs are finished"
        )
    data = _CONFIG.value and _CONFIG.value.data
    return data and {"raw_dir": data.raw_dir, "cache_dir": data.cache_dir}


def _variants() -> list[Any]:
    """The configs of --variants, each with the --config.field=value flags that were given."""
    if not _VARIANTS.value:
        raise UserError("--mode=compare needs --variants, for example --variants=phase1,phase2")
    flag: Any = flags.FLAGS["config"]
    configs = []
    for name in _VARIANTS.value:
        configs.append(flag.parser.parse(f"{_config_path()}:{name}"))
        try:
            configs[-1].update_from_flattened_dict(config_flags.get_override_values(flag))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"--variants={name}: {' '.join(str(error).split())}") from None
    return configs


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; every mistake in them is a UserError."""
    given = None
    for given in re.finditer(r"\0--?config[=\0]([^\0:]*)([^\0]*)", "\0".join(argv)):
        if not Path(given[1]).is_file():
            runs = [str(path) for path in Path("configs").glob("*.py") if path.stem not in _NO_RUNS]
            raise UserError(f"--config: there is no file '{given[1]}'; {nearest(given[1], runs)}")
    try:
        return flags.FLAGS(argv)
    except UserError:
        raise
    except (AttributeError, KeyError) as error:
        path = given[1] + given[2] if given else ""
        raise UserError(_unknown_field(path, argv) or str(error)) from None
    except (flags.Error, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UserError(" ".join(str(error).split())) from None


def _unknown_field(path: str, argv: list[str]) -> str | None:
    """Which --config.a.b=value names a field that is not there, and the nearest that is."""
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
        if not match:
            continue
        node: Any = flags.FLAGS["config"].parser.parse(path) if path else {}
        for part in match[1].split("."):
            fields = list(node) if hasattr(node, "keys") else []
            if part not in fields:
                return f"--config.{match[1]}: there is no field '{part}'; {nearest(part, fields)}"
            node = node[part]
    return None


def cli() -> None:
    """The command: one clear line and exit code 1 where the user can mend something."""
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        _leave(1, f"error: {error}")
    except OSError as error:  # a full disk, a folder taken away
        where = f"{error.filename}: " if error.filename else ""
        _leave(1, f"error: {where}{error.strerror or error}{_goes_on() or _elsewhere(error)}")
    except Stopped as stopped:
        _leave(SAVED, str(stopped))
    except KeyboardInterrupt:
        _leave(130, f"interrupted{_goes_on()}")


def _goes_on() -> str:
    """What an end that nobody planned leaves of a mode that trains; "" of one that does not."""
    trains = flags.FLAGS.is_parsed() and not _RUNS.value and _CONFIG.value is not None
    if not trains or _MODE.value not in TRAINING:
        return ""
    command = "the same command"
    if not _CONFIG.value.resume:
        command = "the command without --config.resume=False"
    return f"; {command} goes on" + (" from the last epoch" if _MODE.value == "train" else "")


def _elsewhere(error: OSError) -> str:
    """What helps the other modes where a file cannot be written; "" where none can be read."""
    if not flags.FLAGS.is_parsed() or (error.filename and _is_sealed(error.filename)):
        return ""
    way = "--out=DIR writes elsewhere" if _MODE.value in _LOOKING else "choose another --workdir"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"; make room, or {way}"
    return f"; {way}" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""


def _is_sealed(path: str) -> bool:
    return os.path.exists(path) and not os.access(path, os.R_OK)


def _leave(code: int, said: str) -> None:
    try:
        print(said, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:  # a lost terminal: nobody reads, and Python would end with a code of its own
        os._exit(code)
    # All is said: what threads of libraries make of a run that has ended is of no use to anybody.
    quiet: Any = lambda *_: None  # noqa: E731
    threading.excepthook = sys.unraisablehook = sys.excepthook = quiet
    if flags.FLAGS.is_parsed() and _distributed():
        os._exit(code)  # else JAX would wait for the others, and they for this one
    sys.exit(code)


if __name__ == "__main__":
    cli()
