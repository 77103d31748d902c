"""Maps a unit's Verilog to UltraScale+ cells with Yosys.

`python -m moevit.boards.synthesis.mapping SOURCE TOP OUT uram`, or `block` for a device without UltraRAM.

This is `synth_xilinx -family xcup` with some of its steps replaced.

- Multipliers: Yosys packs registers, adders and cascades into the DSPs of the 7 series only, although those of
  UltraScale+ have the same ones (UG579). So multipliers of 27 x 18 bits are mapped to cells that bear the 7 series'
  name, are packed as those, and get their own name afterwards.
- Tables: all become LUTs. `memory_libmap` runs out of memory on a table with a read port for each of 32 lanes.
- LUTs: `abc`, since `abc9` of Yosys 0.70 fails on some units of this machine with an assertion about names.
"""

import resource
import sys
from pathlib import Path

OPTIONS = "-family xcup -flatten -noiopad -noclkbuf"

MEMORY_BYTES = 8 << 30  #: a pass that wants more fails, and not the whole computer

MULTIPLIER = r"""
module \$__MUL27X18 (input [26:0] A, input [17:0] B, output [44:0] Y);
  parameter A_SIGNED = 0;
  parameter B_SIGNED = 0;
  parameter A_WIDTH = 0;
  parameter B_WIDTH = 0;
  parameter Y_WIDTH = 0;
  wire [47:0] P;
  DSP48E1 #(
    .ACASCREG(0), .ADREG(0), .A_INPUT("DIRECT"), .ALUMODEREG(0), .AREG(0), .BCASCREG(0), .B_INPUT("DIRECT"),
    .BREG(0), .CARRYINREG(0), .CARRYINSELREG(0), .CREG(0), .DREG(0), .INMODEREG(0), .MREG(0), .OPMODEREG(0),
    .PREG(0), .USE_MULT("MULTIPLY"), .USE_SIMD("ONE48"), .USE_DPORT("FALSE")
  ) _TECHMAP_REPLACE_ (
    .A({{3{A[26]}}, A}), .B(B), .C(48'b0), .D(25'b0), .CARRYIN(1'b0), .P(P),
    .INMODE(5'b00000), .ALUMODE(4'b0000), .OPMODE(7'b000101), .CARRYINSEL(3'b000),
    .ACIN(30'b0), .BCIN(18'b0), .PCIN(48'b0)
  );
  assign Y = P;
endmodule
"""

_WIDTHS = (
    "-D DSP_A_MAXWIDTH=27 -D DSP_B_MAXWIDTH=18 -D DSP_A_MINWIDTH=2 -D DSP_B_MINWIDTH=2 -D DSP_Y_MINWIDTH=9 "
    "-D DSP_SIGNEDONLY=1 -D DSP_NAME=$__MUL27X18"
)


def script(source: Path, top: str, multiplier: Path, netlist: Path, uram: bool = True) -> list[str]:
    """The passes, in order; ``uram`` if the device has UltraRAM."""
    synthesise = f"synth_xilinx {OPTIONS}{' -uram' if uram else ''} -top {top} -run"
    return [
        f"read_verilog {source}",
        f"{synthesise} begin:map_dsp",
        "memory_dff",
        "alumacc -macc-only",
        "maccmap -unmap",
        "opt_clean",
        f"techmap -map +/mul2dsp.v -map {multiplier} {_WIDTHS}",
        "select a:mul2dsp",
        "setattr -unset mul2dsp",
        "opt_expr -fine",
        "wreduce",
        "select -clear",
        "xilinx_dsp -family xc7",
        "chtype -set $mul t:$__soft_mul",
        f"{synthesise} coarse:map_memory",
        "memory_map -rom-only",
        f"{synthesise} map_memory:map_luts",
        "opt_expr -mux_undef -noclkinv",
        "abc -luts 2:2,3,6:5,10,20",
        "clean",
        "xilinx_srl -fixed -minlen 3",
        "techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6",
        "xilinx_dffopt",
        "opt_lut_ins -tech xilinx",
        f"{synthesise} finalize:",
        "chtype -set DSP48E2 t:DSP48E1",
        f"write_json {netlist}",
    ]


def main(source: Path, top: str, netlist: Path, uram: bool) -> None:
    """Write a unit's netlist as Yosys' JSON."""
    from pyosys import libyosys

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    multiplier = netlist.with_suffix(".map.v")
    multiplier.write_text(MULTIPLIER)
    design = libyosys.Design()
    for line in script(source, top, multiplier, netlist, uram):
        libyosys.run_pass(line, design)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4] == "uram")
