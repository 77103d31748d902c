"""What a command prints: one contract for all of them.

A command is a function decorated with `json_command`. It takes an `Output` as its first argument, prints its
report with `Output.say`, and returns the JSON object (or None for none). With `--json` that object is all
that standard output gets: whatever else is printed meanwhile, also by libraries and child processes, goes to
standard error.
"""

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, TextIO

import click

EXIT_CHECK_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_BUG = 70


class CheckFailedError(Exception):
    """A check failed after the command has printed its whole result: the exit status is 1."""


class Output:
    """The printing side of one run of a command.

    Parameters
    ----------
    as_json : bool
        Whether `--json` was given.
    """

    def __init__(self, *, as_json: bool):
        self.as_json = as_json
        self.failures: list[str] = []

    def say(self, text: str = "") -> None:
        """Print a line of the report that a person reads."""
        click.echo(text, err=self.as_json)

    def note(self, text: str) -> None:
        """Print a line that is not part of the result, on standard error."""
        click.echo(text, err=True)

    def fail(self, reason: str) -> None:
        """Record that a check failed: the command goes on, and its exit status will be 1."""
        self.failures.append(reason)

    @contextlib.contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A progress bar on a terminal, nothing in a pipe; yields the function that advances it."""
        if not sys.stderr.isatty():
            yield lambda steps: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda steps: bar.advance(task, steps)


def to_json(value: Any) -> Any:
    """A value as plain JSON types: NumPy scalars and arrays, paths and sets too; not a number is null."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy
        return to_json(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


@contextlib.contextmanager
def _standard_output_kept_clean() -> Iterator[TextIO]:
    """Send all that is printed to standard error, child processes included; afterwards all is as it was."""
    real = sys.stdout
    real.flush()
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # the process was started without one of them
        saved = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield real
    finally:
        sys.stderr.flush()
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def _run(function: Callable[..., Any], as_json: bool, arguments: dict[str, Any]) -> None:
    output = Output(as_json=as_json)
    if as_json:
        with _standard_output_kept_clean() as real:
            result = to_json(function(output, **arguments))
        print(json.dumps(result if result is not None else {}, allow_nan=False), file=real, flush=True)
    else:
        function(output, **arguments)
    if output.failures:
        raise CheckFailedError("; ".join(output.failures))


def json_command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of a function `f(output, **options) -> dict | None`; adds `--json`.

    Click's option and argument decorators go below this one, the attributes are those of `click.command`.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*, as_json: bool, **arguments: Any) -> None:
            _run(function, as_json, arguments)

        option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        return click.command(**attributes)(option(run))

    return decorate


__all__ = [
    "EXIT_BUG",
    "EXIT_CHECK_FAILED",
    "EXIT_USER_ERROR",
    "CheckFailedError",
    "Output",
    "json_command",
    "to_json",
]
