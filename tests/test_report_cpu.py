"""What a report measures on the CPU: which energy counters are read, and that int8 is measured or missed aloud."""

from pathlib import Path

import pytest
from compile_helpers import SMALL, float_inputs

from moevit.cli.report import cpu


def zone(root: Path, folder: str, name: str, microjoules: int) -> Path:
    path = root / folder
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_each_package_is_counted_once(tmp_path: Path) -> None:
    """Zones inside of a package, and one of the whole machine, lie beside it in the same folder."""
    packages = [zone(tmp_path, "intel-rapl:0", "package-0", 5), zone(tmp_path, "intel-rapl:1", "package-1", 7)]
    zone(tmp_path, "intel-rapl:0:0", "core", 3)
    zone(tmp_path, "intel-rapl:0:1", "dram", 1)
    zone(tmp_path, "intel-rapl:2", "psys", 20)
    assert cpu.rapl_counters(tmp_path) == packages
    assert cpu.rapl_counters(tmp_path / "nothing") == []


@pytest.mark.parametrize("step", [2_000_000, -1, 0])
def test_energy_is_that_of_a_run_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A counter that stands still or wrapped around says nothing."""
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    monkeypatch.setattr(cpu, "RAPL", tmp_path)
    monkeypatch.setattr(cpu, "SECONDS", 0.0)
    times, joules = cpu._repeat(lambda: counter.write_text(str(int(counter.read_text()) + step)))
    assert len(times) == 1
    assert joules == (pytest.approx(2.0) if step > 0 else None)


def test_energy_that_may_not_be_read_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0", 5)).write_text("")
    monkeypatch.setattr(cpu, "RAPL", tmp_path)
    monkeypatch.setattr(cpu, "SECONDS", 0.0)
    assert cpu._repeat(lambda: None)[1] is None


def test_float_and_int8_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SECONDS", 0.05)
    runs, missing = cpu.measure(SMALL, {n: x[:1] for n, x in float_inputs(SMALL).items()}, threads=1)
    assert [run.precision for run in runs] == ["float32", "int8"]
    assert missing is None
    assert all(run.runs > 0 and run.spread_ms[0] <= run.latency_ms <= run.spread_ms[1] for run in runs)


def test_int8_that_onnxruntime_cannot_make_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime.quantization

    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such pass")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", fails)
    monkeypatch.setattr(cpu, "SECONDS", 0.05)
    runs, missing = cpu.measure(SMALL, {n: x[:1] for n, x in float_inputs(SMALL).items()}, threads=1)
    assert [run.precision for run in runs] == ["float32"]
    assert missing == "onnxruntime cannot quantise it: no such pass"
