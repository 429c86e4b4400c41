"""Errors for people: one clear line, no traceback; and how a command ends with them."""

import difflib
import errno
import os
from collections.abc import Iterable

from ml_collections import ConfigDict


class UserError(Exception):
    """Something the user can mend. A command prints its one line and exits with code 1."""


SAVED = 75  # the exit code of a run that was stopped and can be resumed (EX_TEMPFAIL of sysexits.h)


class Stopped(Exception):
    """A signal stopped a run, which has saved its state. A command exits with code `SAVED`."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error line about a misspelt `name`: the nearest option, then all of them."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    known = ", ".join(options) or "none"
    return f"did you mean '{close[0]}'? There are: {known}" if close else f"there are: {known}"


def check_choice(what: str, name: str, options: Iterable[str]) -> None:
    """Raises UserError unless `name` is one of `options`; `what` names the config field or flag."""
    options = list(options)
    if name not in options:
        raise UserError(f"{what}: there is no '{name}'; {nearest(str(name), options)}")


def check_field(what: str, config: ConfigDict, field: str) -> None:
    """Raises UserError unless `config` has the field 'a.b.c'; `what` names the config."""
    node = config
    for part in field.split("."):
        fields = list(node) if isinstance(node, ConfigDict) else []
        if part not in fields:
            raise UserError(f"{what}.{field}: there is no field '{part}'; {nearest(part, fields)}")
        node = node[part]


def again(resume: bool, epoch: bool = False) -> str:
    """How a run that ended early goes on. resume: `config.resume`; epoch: from its last epoch?"""
    command = "same command" if resume else "command without --config.resume=False"
    return f"the {command} goes on{' from the last epoch' if epoch else ''}"


def ending(error: BaseException, resume: str, elsewhere: str) -> tuple[int, str]:
    """-> (exit code, last line) of a command that `error` ended.

    resume: how it goes on, elsewhere: how it writes to another folder; each may be "".
    """
    match error:
        case Stopped():
            return SAVED, str(error)
        case KeyboardInterrupt():
            return 130, "; ".join(filter(None, ("interrupted", resume)))
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            line = f"error: {where}{error.strerror or error}"
            return 1, "; ".join(filter(None, (line, resume or _remedy(error, elsewhere))))
    return 1, f"error: {error}"


def _remedy(error: OSError, elsewhere: str) -> str:
    """What helps where a file cannot be written; "" where it cannot be read."""
    path = error.filename
    if not elsewhere or (path and os.path.exists(path) and not os.access(path, os.R_OK)):
        return ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"make room, or {elsewhere}"
    return elsewhere if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else ""
