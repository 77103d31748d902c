"""The command line. It loads no command: `moevit.cli.<name>` is imported when `moevit <name>` runs."""

import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from moevit.cli.output import EXIT_BUG, EXIT_CHECK_FAILED, EXIT_USER_ERROR, CheckFailedError
from moevit.errors import MoevitError

# Each command is the attribute `command` of moevit.cli.<name>. The sentence is here too, so that `moevit
# --help` imports none of them.
COMMANDS = {
    "compile": "Turn ONNX models into a program container.",
    "simulate": "Run a container on one of the simulators.",
    "run": "Run a container on a device.",
    "evaluate": "Compare a container's accuracy with onnxruntime's.",
    "ablate": "Measure each of the machine's techniques against the plain way.",
    "bench": "Measure the standing workloads and what bounds them.",
    "workload": "Write a standing workload as ONNX files and inputs.",
    "sweep": "Try a model on many machines: latency against DSPs, energy and bandwidth.",
    "report": "Write a page with latency, energy and accuracy beside other ways to run it.",
    "compare": "Show what changed between two containers, or since a saved report.",
    "inspect": "Show what a container holds: layers, code, memory map, scales.",
    "verilog": "Write a configuration's Verilog, memory map and register header.",
    "build": "Build a machine for a board, or report what it takes there.",
    "configs": "List the named configurations.",
    "doctor": "Show which tools were found, and how to get those that are missing.",
}


class LazyGroup(click.Group):
    """All commands: imports one when it is called, and turns every error into an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"moevit.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any
    ) -> NoReturn:
        """Run, and exit with 0: done, 1: a check failed, 2: mend it, 3: a vendor's tool is missing, 70: a bug."""
        arguments = list(sys.argv[1:] if args is None else args)
        try:
            self._run(arguments, prog_name or "moevit")
        except BrokenPipeError:
            # The reader of a pipe has seen enough; nothing may be written to it while Python shuts down.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    def _run(self, arguments: list[str], program: str) -> NoReturn:
        as_json = "--json" in arguments
        try:
            status = super().main(arguments, prog_name=program, standalone_mode=False)
            sys.exit(status if isinstance(status, int) else 0)
        except CheckFailedError as failure:
            click.echo(f"{program}: check failed: {failure}", err=True)
            sys.exit(EXIT_CHECK_FAILED)
        except MoevitError as error:
            _report(program, str(error), error.as_json(), as_json)
            sys.exit(error.exit_status)
        except click.ClickException as error:
            context = error.ctx if isinstance(error, click.UsageError) else None
            path = program if context is None else context.command_path
            message = " ".join(error.format_message().split()).rstrip(".")
            mend = f"see `{path} --help`"
            described = {"type": "UsageError", "what": message, "where": path, "mend": mend}
            _report(path, f"{message} ({mend})", described, as_json)
            sys.exit(EXIT_USER_ERROR)
        except (click.Abort, KeyboardInterrupt):
            click.echo(f"{program}: interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:
            raise
        except OSError as error:
            what = error.strerror or str(error)
            located = MoevitError(what, where=error.filename, mend="check the path and its permissions")
            logging.getLogger(__name__).info("where it happened", exc_info=error)
            _report(program, str(located), located.as_json(), as_json)
            sys.exit(EXIT_USER_ERROR)
        except Exception as error:
            logging.getLogger(__name__).critical(
                "a bug in moevit; please report what follows", exc_info=error
            )
            if as_json:
                click.echo(json.dumps({"error": {"type": type(error).__name__, "what": str(error)}}))
            sys.exit(EXIT_BUG)


def _report(where: str, line: str, described: dict[str, Any], as_json: bool) -> None:
    """Print an error: its line on standard error, with `--json` also an object on standard output."""
    click.echo(f"{where}: error: " + " ".join(line.split()), err=True)
    if as_json:
        click.echo(json.dumps({"error": described}, default=str))


@click.group(cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", count=True, help="Log what is done; twice: in detail.")
@click.version_option(package_name="moevit")
def cli(verbose: int) -> None:
    """From an ONNX vision transformer to bit-exact RTL: generator, compiler and simulators.

    Every command takes --json: one JSON object on standard output, everything else on standard error. The
    exit status is 0 on success, 1 if a check failed, 2 if something needs mending by you.
    """
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(
        level=levels[min(verbose, 2)],
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )


def main() -> NoReturn:
    """The `moevit` console script."""
    cli.main()
