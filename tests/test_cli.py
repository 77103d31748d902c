"""The command line's contract: what is printed where, exit statuses, no heavy import before its time."""

import json
import os
import subprocess
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner

from moevit import errors
from moevit.cli import COMMANDS, LazyGroup, cli
from moevit.cli.output import Output, json_command, to_json

HEAVY = ("torch", "onnx", "onnxruntime", "amaranth", "numpy", "matplotlib", "rich", "cocotb")


def run_group(command, *arguments):
    """Run a command inside the real group, as if it were one of the commands."""

    class Group(LazyGroup):
        def get_command(self, ctx, name):
            return command if name == "try" else super().get_command(ctx, name)

    group = Group(name="moevit", callback=lambda: None)
    return CliRunner().invoke(group, ["try", *arguments])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from moevit.cli import cli\n"
        "try:\n"
        f"    cli.main({arguments})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, moevit, moevit.errors; assert not [n for n in {HEAVY} if n in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_lists_every_command():
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, sentence in COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert sentence.split()[0] in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["simulat"], "No such command 'simulat'"),
        (["doctor", "--nonsense"], "No such option '--nonsense'"),
        (["doctor", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, said):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert "--help`" in result.stderr


def test_wrong_usage_with_json_is_one_object():
    result = CliRunner().invoke(cli, ["doctor", "--json", "--nonsense"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "UsageError"


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MoevitError("it is wrong"), 2),
        (errors.ConfigError("no such configuration 'x'", where="--config", mend="see `moevit configs`"), 2),
        (errors.ContainerError("truncated\nhere", where="a.moevit"), 2),
        (errors.HazardError("instruction 7 reads too early"), 1),
        (errors.MismatchError(tensor="logits", index=(0, np.int64(3)), got=np.int8(1), want=2), 1),
        (FileNotFoundError(2, "No such file or directory", "missing.onnx"), 2),
    ],
)
def test_an_error_is_one_line_and_its_status(error, status, as_json):
    @json_command()
    def command(output):
        raise error

    result = run_group(command, *(["--json"] if as_json else []))
    assert result.exit_code == status
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("moevit: error: ") or "error: " in result.stderr
    if as_json:
        assert set(json.loads(result.stdout)) == {"error"}
    else:
        assert result.stdout == ""


def test_a_bug_shows_its_traceback_and_is_no_failed_check():
    @json_command()
    def command(output):
        raise KeyError("oops")

    result = run_group(command)
    assert result.exit_code == 70


def test_json_is_all_of_standard_output(tmp_path):
    """What libraries and child processes print goes elsewhere too; afterwards standard output is back."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, subprocess\n"
        "from moevit.cli.output import json_command\n"
        "@json_command()\n"
        "def command(output):\n"
        "    output.say('a report')\n"
        "    output.note('a note')\n"
        "    print('a stray print')\n"
        "    os.write(1, b'a stray write\\n')\n"
        "    subprocess.run(['echo', 'a child'], check=True)\n"
        "    return {'answer': 42}\n"
        "command(standalone_mode=False)\n"
        "print('after')\n"
    )
    result = subprocess.run(
        [sys.executable, script, "--json"], capture_output=True, text=True, check=True, env=os.environ
    )
    assert result.stdout == '{"answer": 42}\nafter\n'
    for text in ("a report", "a note", "a stray print", "a stray write", "a child"):
        assert text in result.stderr


def test_a_failed_check_keeps_its_result():
    @json_command()
    @click.option("--size", type=int, default=1)
    def command(output, size):
        output.fail("2 of 3 differ")
        return {"bit_exact": False, "size": size}

    result = run_group(command, "--json", "--size", "3")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"bit_exact": False, "size": 3}
    assert result.stderr == "moevit: check failed: 2 of 3 differ\n"


def test_a_report_goes_to_standard_output_and_progress_is_quiet_in_a_pipe():
    @json_command()
    def command(output):
        with output.progress("working", 2) as advance:
            advance(1)
        output.say("done")
        return {}

    result = run_group(command)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "done\n", "")


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m moevit.cli --help | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_to_json():
    value = {"a": np.float32(0.5), "b": np.arange(3), 1: (None, True, float("nan")), "s": {2, 1}}
    assert to_json(value) == {"a": 0.5, "b": [0, 1, 2], "1": [None, True, None], "s": [1, 2]}
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json(object())


def test_output_writes_the_report_to_standard_error_with_json(capsys):
    Output(as_json=True).say("text")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "text\n")
