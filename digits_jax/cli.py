"""The command line: the modes, their flags, and how a command ends.

Only launch.py and __main__.py import this file. The process is changed only here and in context
managers.
"""

import os
import pkgutil
import re
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import NamedTuple

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from digits_jax import console, defaults, errors, settings
from digits_jax.devices.signals import Interrupts, stopping
from digits_jax.errors import UserError


class Mode(NamedTuple):
    """What --mode=NAME calls: 'room.file:function'; 'room.file' where both have one name."""

    call: str
    flags: tuple[str, ...]
    help: str
    trains: bool = False  # can be stopped and resumed
    alone: bool = False  # needs no --config

    def function(self) -> Callable[..., None]:
        name = "" if ":" in self.call else f":{self.call.rpartition('.')[2]}"
        return pkgutil.resolve_name(f"digits_jax.{self.call}{name}")


CLUSTER = ("distributed", "coordinator", "num_processes", "process_id")
MODES = {  # those with --out read a finished run
    "train": Mode("training.train", CLUSTER, "train, or resume training (default)", True),
    "eval": Mode(
        "analysis.evaluate", ("data", "ink", "labels", "out"), "classify the test set or --data"
    ),
    "read": Mode(
        "analysis.read", ("data", "ink", "labels", "out"), "read numbers in --data", alone=True
    ),
    "best-test-epoch": Mode(
        "analysis.best_test_epoch", ("out",), "accuracy at the best test epoch"
    ),
    "more-pairs": Mode("analysis.more_pairs", ("out",), "accuracy on 25 more draws of test pairs"),
    "robustness": Mode("analysis.robustness", ("out",), "accuracy on distorted digits"),
    "describe": Mode("analysis.describe", (), "print the network, layer by layer"),
    "explain": Mode("analysis.explain", ("example", "out"), "filters, saliency, Grad-CAM"),
    "compare": Mode(
        "analysis.compare:command", ("variants", "runs"), "train variants, or test two runs", True
    ),
    "search": Mode("search.search", (), "search hyperparameters", True),
    "export": Mode("export.export", ("out",), "write ONNX, StableHLO and a model card"),
    "demo": Mode("export.export:demo", ("port", "host", "out"), "serve a page to draw digits on"),
}
HELP = [f"{name}{' --'.join(('', *mode.flags))}: {mode.help}" for name, mode in MODES.items()]
FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config", None, "FILE[:variant], or NAME[:variant].", lock_config=True
)
flags.DEFINE_string("workdir", None, "The run's folder; default runs/NAME[-variant], or runs.")
flags.DEFINE_string("mode", "train", "\n".join(("What to do, with its own flags:", *HELP)))
flags.DEFINE_string("out", None, "The folder to write into, instead of the workdir.")
flags.DEFINE_string(
    "data", None, "Your pictures: a file, a folder, 'photos/*.jpg', or - (stdin); or a .npz."
)
flags.DEFINE_string("ink", "auto", "The ink of --data: auto, bright or dark.")
flags.DEFINE_string(
    "labels", None, "Where a picture's label is: its folder, or its name (photo_7.jpg is a 7)."
)
flags.DEFINE_integer("example", 0, "Which of the test images, from 0.")
flags.DEFINE_list("variants", [], "Which variants of the config to train, in this order.")
flags.DEFINE_list("runs", [], "Two finished runs; --config only says where their digits are.")
flags.DEFINE_integer("port", 8000, "A port of --host; 0 takes a free one.")
flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "The address to serve on: 127.0.0.1, this computer alone, or 0.0.0.0, the whole network.",
)
flags.DEFINE_bool("distributed", False, "One of several processes of a cluster.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, without a cluster.")
flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes there are.")
flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0.")


def dispatch(argv: list[str]) -> None:
    """Calls the mode's function; heavy imports wait until the flags are known to be right."""
    if len(argv) > 1:
        way = "flags look like --config=configs/mnist100.py"
        if FLAGS.data and os.path.exists(argv[1]):  # a shell has made several words of a pattern
            way = "--data takes one folder, or a pattern in quotes: --data='photos/*.jpg'"
        raise UserError(f"'{argv[1]}' is not a flag; {way}")
    errors.check_choice("--mode", FLAGS.mode, MODES)
    mode, config = MODES[FLAGS.mode], FLAGS.config
    for flag in (flag for other in MODES.values() for flag in other.flags):
        if FLAGS[flag].present and flag not in mode.flags:
            modes = ", ".join(name for name, other in MODES.items() if flag in other.flags)
            raise UserError(f"--{flag} is for --mode={modes}")
    if config is None and not FLAGS.runs and not mode.alone:
        raise UserError("say what to run, for example --config=configs/mnist100.py")
    if mode.trains and not FLAGS.runs:
        exit_at_once()
    several = FLAGS.distributed or any(FLAGS[flag].present for flag in CLUSTER[1:])
    # Of several processes only the first one shows anything, and not before they are joined.
    with nullcontext() if several else console.display(lines=True):
        console.status("starting JAX")
        run_mode(mode, config, several)


def run_mode(mode: Mode, config: ConfigDict | None, several: bool) -> None:
    """Calls the mode's function in a process that is set up for it; imports JAX."""
    function = mode.function()
    from digits_jax.data.dataset import cache_dir
    from digits_jax.devices import backend, hosts

    values = {flag: FLAGS[flag].value for flag in mode.flags if flag not in CLUSTER}
    if FLAGS.mode == "compare":
        values["flag"] = FLAGS["config"]
    by_hand = (FLAGS[flag].value for flag in CLUSTER[1:])
    together = hosts.joined(FLAGS.workdir, *by_hand) if several else nullcontext(Interrupts)
    cache = cache_dir(config.data if config else ConfigDict({"cache_dir": ""}))
    with together as listen, console.display(lines=True), backend.command(cache):
        if mode.trains:
            function(config, FLAGS.workdir or None, listen, **values)
        elif "out" in mode.flags:
            default = settings.finished(config) if config else None
            function(config, FLAGS.workdir or default, **values)
        else:
            function(config)


def exit_at_once() -> None:
    """From now on a signal to stop ends the process, until a run listens and when it has ended."""

    def end(*_: object) -> None:
        console.end_display()
        os._exit(errors.SAVED)

    for one in set(stopping()) - {signal.SIGINT}:
        signal.signal(one, end)


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; every mistake in them is a UserError."""
    joined = re.sub(r"(\0--?config[=\0])([^\0]*?\.py|[^\0:]*)", _found, "\0".join(argv))
    given = re.findall(r"\0--?config[=\0]([^\0]*)", joined)
    try:
        return FLAGS(joined.split("\0"))
    except (AttributeError, KeyError) as error:
        config = FLAGS["config"].parser.parse(given[-1]) if given else ConfigDict()
        for field in re.findall(r"\0--?(?:no)?config\.([\w.]+)", joined):
            errors.check_field("--config", config, field)
        raise UserError(str(error)) from None
    except (flags.Error, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise UserError(" ".join(str(error).split())) from None


def _found(given: re.Match[str]) -> str:
    """The flag --config with the path of its file, which may be one that ships."""
    path = str(defaults.config_file(given[2]))
    # ml_collections splits at a colon, as of a drive of Windows.
    return given[1] + (os.path.relpath(path) if ":" in path else path)


def main() -> None:
    """Runs the command; its last line and its exit code say how it ended."""
    for flag in FLAGS.flags_by_module_dict()[__name__]:  # what --help shows
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        app.run(dispatch, flags_parser=parse)
    except (UserError, errors.Stopped, OSError, KeyboardInterrupt) as error:
        resume = elsewhere = ""
        if FLAGS.is_parsed():
            mode = MODES.get(FLAGS.mode, MODES["train"])
            elsewhere = "choose another --workdir"
            if "out" in mode.flags:
                elsewhere = "--out=DIR writes elsewhere"
            elif mode.trains and FLAGS.config and not FLAGS.runs:
                resume = errors.again(FLAGS.config.resume, FLAGS.mode == "train")
        code, line = errors.ending(error, resume, elsewhere)
        with suppress(OSError):  # a lost terminal
            print(line, file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(code)  # without waiting for threads of libraries, or for a run's other processes
