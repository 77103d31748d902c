"""Everything in the package folders is importable as `moevit...` from where it lies, and installs."""

import importlib
import importlib.util
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("hw", "sim", "compiler", "models", "boards")


def package_folders():
    """Each folder with Python files, and the package name it must have."""
    for folder in ("moevit", *MAPPED):
        for path in sorted({file.parent for file in (ROOT / folder).rglob("*.py")}):
            parts = path.relative_to(ROOT).parts
            yield ".".join(parts if parts[0] == "moevit" else ("moevit", *parts)), path


def test_every_folder_with_code_is_installed(monkeypatch):
    seen = {}
    monkeypatch.setattr(setuptools, "setup", seen.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    assert sorted(seen["packages"]) == sorted(name for name, _ in package_folders())


@pytest.mark.parametrize(("name", "folder"), [pytest.param(*p, id=p[0]) for p in package_folders()])
def test_each_package_is_found_where_it_lies_and_says_what_it_is(name, folder):
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).parent == folder
    assert '"""' in Path(spec.origin).read_text()[:4]


def test_public_names_are_listed():
    moevit = importlib.import_module("moevit")
    assert set(moevit.__all__) <= set(dir(moevit))
    assert moevit.__version__[0].isdigit()
    assert moevit.MoevitError is sys.modules["moevit.errors"].MoevitError
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = moevit.nonsense


def test_each_module_beside_the_command_line_is_held_to_the_layering():
    """A new module of `moevit/` is listed as a contract in pyproject.toml, or named here as none."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    listed = set(settings[0]["source_modules"])
    entries = {path.stem for path in (ROOT / "moevit").iterdir() if path.suffix == ".py" or path.is_dir()}
    contracts = entries - {"__init__", "__pycache__", "ablate", "bench", "cli", "api", "driver", "sweep"}
    assert {f"moevit.{name}" for name in contracts} <= listed
