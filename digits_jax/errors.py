"""Errors that are meant for people: one clear line, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. `launch.py` prints its one line and exits with code 1."""


SAVED = 75  # the exit code of a run that was stopped and can go on (EX_TEMPFAIL of sysexits.h)


class Stopped(Exception):
    """A run was asked to stop and has saved what it had. `launch.py` exits with code `SAVED`."""


def nearest(name: str, options: Iterable[str]) -> str:
    """The tail of an error line about a misspelt `name`: the nearest option, then all of them."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    known = ", ".join(options) or "none"
    return f"did you mean '{close[0]}'? There are: {known}" if close else f"there are: {known}"


def check_choice(what: str, name: str, options: Iterable[str]) -> None:
    """Raises UserError unless `name` is one of `options`; `what` names the config field or flag."""
    options = list(options)
    if name not in options:
        raise UserError(f"{what}: there is no '{name}'; {nearest(str(name), options)}")
