// Look-up tables as Yosys' own cell of that kind, which it knows how to simplify: most of a carry's inputs are constants.
module LUT4(input A, B, C, D, output Z);
  parameter [15:0] INIT = 0;
  \$lut #(.WIDTH(4), .LUT(INIT)) _TECHMAP_REPLACE_(.A({D, C, B, A}), .Y(Z));
endmodule

module LUT2(input A, B, output Z);
  parameter [3:0] INIT = 0;
  \$lut #(.WIDTH(2), .LUT(INIT)) _TECHMAP_REPLACE_(.A({B, A}), .Y(Z));
endmodule
