"""The register map: offsets that stay, and that every register says what it is."""

import pytest
from click.testing import CliRunner

from moevit import registers
from moevit.cli import gendocs
from moevit.registers import COUNTERS, OFFSETS, REGISTERS, Access, ErrorCode, Status

#: What drivers rely on. A change here needs a new major VERSION; more registers need a new minor one.
GOLDEN_OFFSETS = {
    "IDENTITY": 0x00, "VERSION": 0x04, "DIGEST_LO": 0x08, "DIGEST_HI": 0x0C,
    "CONTROL": 0x10, "STATUS": 0x14, "ERROR": 0x18, "ERROR_INSTRUCTION": 0x1C,
    "INTERRUPT_ENABLE": 0x20, "INTERRUPT_STATUS": 0x24,
    "IMAGE_LO": 0x28, "IMAGE_HI": 0x2C, "IMAGE_BYTES": 0x30, "PROGRAM": 0x34,
    "INPUT_LO": 0x38, "INPUT_HI": 0x3C, "INPUT_BYTES": 0x40,
    "OUTPUT_LO": 0x44, "OUTPUT_HI": 0x48, "OUTPUT_BYTES": 0x4C,
    "RETIRED": 0x50, "CYCLES": 0x54, "COUNT_STREAM_BUSY": 0x100, "COUNT_DMA_ORDER": 0x19C,
}  # fmt: skip

GOLDEN_CODES = (
    "NONE", "BUS_FETCH", "BUS_STREAM", "BUS_DMA_READ", "BUS_DMA_WRITE", "ILLEGAL_INSTRUCTION",
    "WRONG_CONFIGURATION", "INPUT_RANGE", "OUTPUT_RANGE", "IMAGE_RANGE", "ACTIVATION_RANGE", "OPERAND_RANGE",
    "STALLED", "QUEUE_RANGE",
)  # fmt: skip


def test_offsets():
    assert GOLDEN_OFFSETS.items() <= OFFSETS.items()
    assert registers.VERSION == 0x0003_0000
    offsets = [r.offset for r in REGISTERS]
    assert len({*offsets}) == len({*OFFSETS}) == len(REGISTERS)
    assert all(o % 4 == 0 and o < 1 << registers.ADDRESS_WIDTH for o in offsets)
    assert len(REGISTERS) == len(GOLDEN_OFFSETS) - 2 + len(COUNTERS)


def test_codes_and_bits():
    assert tuple(code.name for code in ErrorCode) == GOLDEN_CODES
    assert [code.value for code in ErrorCode] == list(range(len(GOLDEN_CODES)))
    assert [bit.value for bit in Status] == [1, 2, 4, 8]
    assert registers.IDENTITY.to_bytes(4, "big") == b"MOEV"


def test_only_control_cannot_be_read_and_status_not_be_written():
    assert [r.name for r in REGISTERS if r.access is Access.WRITE] == ["CONTROL"]
    writable = {r.name for r in REGISTERS if "w" in r.access.value}
    assert writable & {"IDENTITY", "STATUS", "ERROR", "RETIRED", "CYCLES"} == set()
    assert not [name for name in writable if name.startswith("COUNT_")]


def test_counters_are_named_after_stage_and_cause():
    for index, (stage, cause, doc) in enumerate(COUNTERS):
        register = REGISTERS[-len(COUNTERS) + index]
        assert register.name == f"COUNT_{stage}_{cause}".upper()
        assert register.doc.endswith(doc)
    assert len({(stage, cause) for stage, cause, _ in COUNTERS}) == len(COUNTERS)


def test_the_page_tells_of_everything():
    page = gendocs.registers_page()
    for register in REGISTERS:
        assert f"| `0x{register.offset:03X}` | {register.name} | {register.access} | {register.doc} |" in page
    for code in ErrorCode:
        row = next(line for line in page.splitlines() if line.startswith(f"| {code.value} | {code.name} | "))
        assert len(row.split(" | ")[2]) > 5
    assert "…" not in page  # every abbreviated comment was written out


def test_gendocs_writes_and_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(gendocs, "DOCS", tmp_path)
    runner = CliRunner()
    result = runner.invoke(gendocs.command, ["--check"])
    assert (result.exit_code, result.stderr) == (1, f"not current: {', '.join(gendocs.PAGES)}; run `make docs`\n")
    assert not list(tmp_path.iterdir())
    assert runner.invoke(gendocs.command, ["--write"]).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == set(gendocs.PAGES)
    assert runner.invoke(gendocs.command, ["--check"]).exit_code == 0
    (tmp_path / "isa.md").write_text("stale")
    assert "isa.md" in runner.invoke(gendocs.command, ["--check"]).stderr
    assert runner.invoke(gendocs.command, ["--write"]).stdout == "written: isa.md\n"
    assert runner.invoke(gendocs.command, ["--write"]).stdout == "all pages were current\n"


@pytest.mark.parametrize("arguments", [[], ["--nonsense"]])
def test_gendocs_wants_to_be_told(arguments):
    assert CliRunner().invoke(gendocs.command, arguments).exit_code == 2
