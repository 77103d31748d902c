"""Runs the cocotb modules on the verilated machine: every port at its pins."""

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cocotb_tools.runner import get_runner

from moevit.config import CONFIGS
from moevit.hw.verilog import TOP
from system import build

MODULES = sorted(path.stem.removeprefix("cocotb_") for path in Path(__file__).parent.glob("cocotb_*.py"))


def run(config: str, module: str, folder: Path, seeds: int) -> None:
    """One cocotb module; fails with the name and the message of each test in it that does."""
    runner = get_runner("verilator")
    results, log = folder / "results.xml", folder / "simulation.log"
    try:
        runner.test(
            test_module=f"system.cocotb_{module}", hdl_toplevel=TOP, hdl_toplevel_lang="verilog",
            build_dir=build.build(CONFIGS[config]), test_dir=folder, results_xml=str(results), log_file=log,
            extra_env={
                "MOEVIT_SYSTEM_CONFIG": config,
                "MOEVIT_SYSTEM_SEEDS": str(seeds),
                # Not in every module that is imported: onnx looks through its own for classes.
                "COCOTB_REWRITE_ASSERTION_FILES": str(Path(__file__).parent / "*.py"),
            },
        )  # fmt: skip
    except (SystemExit, RuntimeError, subprocess.SubprocessError) as error:
        if not results.is_file():
            pytest.fail(f"{error}\n{_tail(log)}", pytrace=False)
    cases = list(ElementTree.parse(results).iter("testcase"))
    failed = [(case, failure) for case in cases for kind in ("failure", "error") for failure in case.findall(kind)]
    assert cases
    if failed:
        lines = [
            f"{case.get('name')}: {failure.get('error_msg') or failure.get('message')}" for case, failure in failed
        ]
        pytest.fail("\n".join([*lines, f"the whole log: {log}"]), pytrace=False)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:]) if log.is_file() else "no log"


@pytest.mark.parametrize("module", MODULES)
def test_tiny(module, tmp_path):
    run("tiny", module, tmp_path, seeds=10)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("config", ["tiny", "wide"])  # wide has two weight ports
def test_long(config, module, tmp_path):
    run(config, module, tmp_path, seeds=100)
