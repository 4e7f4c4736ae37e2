"""Errors that a user can act on: what was found, what was expected, what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches


class EsparseError(Exception):
    """Something failed while running; the command line prints the message and exits with 1."""

    exit_code = 1


class InputError(EsparseError, ValueError):
    """What the user gave cannot be used; the command line exits with 2."""

    exit_code = 2


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a closed list, with the nearest known names.

    >>> str(unknown("method", "wonda", ["magnitude", "wanda"]))
    "Unknown method 'wonda'. Did you mean 'wanda'? Known: magnitude, wanda."
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=2)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
