// Simulation models of the ECP5 cells that Yosys has none of, for what this design uses of them: block RAM
// (Lattice FPGA-TN-02204), multiplier (FPGA-TN-02205) and PLL (FPGA-TN-02200).

// No output registers and no reset. Ports of 1, 2, 4, 9 or 18 bits, or A as write port and B as read port of 36.
// What a port reads while the other one writes it is not defined; here it comes out inverted, so that it shows.
module DP16KD(
  input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1,
    DIA0, ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0, CEA, OCEA, CLKA, WEA,
    RSTA, CSA2, CSA1, CSA0,
  output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1,
    DOA0,
  input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1,
    DIB0, ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0, CEB, OCEB, CLKB, WEB,
    RSTB, CSB2, CSB1, CSB0,
  output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1,
    DOB0
);
  parameter DATA_WIDTH_A = 18;
  parameter DATA_WIDTH_B = 18;
  parameter REGMODE_A = "NOREG";
  parameter REGMODE_B = "NOREG";
  parameter RESETMODE = "SYNC";
  parameter ASYNC_RESET_RELEASE = "SYNC";
  parameter CSDECODE_A = "0b000";
  parameter CSDECODE_B = "0b000";
  parameter WRITEMODE_A = "NORMAL";
  parameter WRITEMODE_B = "NORMAL";
  parameter CLKAMUX = "CLKA";
  parameter CLKBMUX = "CLKB";
  parameter GSR = "ENABLED";
  parameter WID = 0;
  parameter INITVAL_00 = 320'b0, INITVAL_01 = 320'b0, INITVAL_02 = 320'b0, INITVAL_03 = 320'b0;
  parameter INITVAL_04 = 320'b0, INITVAL_05 = 320'b0, INITVAL_06 = 320'b0, INITVAL_07 = 320'b0;
  parameter INITVAL_08 = 320'b0, INITVAL_09 = 320'b0, INITVAL_0A = 320'b0, INITVAL_0B = 320'b0;
  parameter INITVAL_0C = 320'b0, INITVAL_0D = 320'b0, INITVAL_0E = 320'b0, INITVAL_0F = 320'b0;
  parameter INITVAL_10 = 320'b0, INITVAL_11 = 320'b0, INITVAL_12 = 320'b0, INITVAL_13 = 320'b0;
  parameter INITVAL_14 = 320'b0, INITVAL_15 = 320'b0, INITVAL_16 = 320'b0, INITVAL_17 = 320'b0;
  parameter INITVAL_18 = 320'b0, INITVAL_19 = 320'b0, INITVAL_1A = 320'b0, INITVAL_1B = 320'b0;
  parameter INITVAL_1C = 320'b0, INITVAL_1D = 320'b0, INITVAL_1E = 320'b0, INITVAL_1F = 320'b0;
  parameter INITVAL_20 = 320'b0, INITVAL_21 = 320'b0, INITVAL_22 = 320'b0, INITVAL_23 = 320'b0;
  parameter INITVAL_24 = 320'b0, INITVAL_25 = 320'b0, INITVAL_26 = 320'b0, INITVAL_27 = 320'b0;
  parameter INITVAL_28 = 320'b0, INITVAL_29 = 320'b0, INITVAL_2A = 320'b0, INITVAL_2B = 320'b0;
  parameter INITVAL_2C = 320'b0, INITVAL_2D = 320'b0, INITVAL_2E = 320'b0, INITVAL_2F = 320'b0;
  parameter INITVAL_30 = 320'b0, INITVAL_31 = 320'b0, INITVAL_32 = 320'b0, INITVAL_33 = 320'b0;
  parameter INITVAL_34 = 320'b0, INITVAL_35 = 320'b0, INITVAL_36 = 320'b0, INITVAL_37 = 320'b0;
  parameter INITVAL_38 = 320'b0, INITVAL_39 = 320'b0, INITVAL_3A = 320'b0, INITVAL_3B = 320'b0;
  parameter INITVAL_3C = 320'b0, INITVAL_3D = 320'b0, INITVAL_3E = 320'b0, INITVAL_3F = 320'b0;

  localparam STDERR = 32'h8000_0002;
  initial begin
    if (REGMODE_A != "NOREG" || REGMODE_B != "NOREG" || CLKAMUX != "CLKA" || CLKBMUX != "CLKB" ||
        CSDECODE_A != "0b000" || CSDECODE_B != "0b000" || (DATA_WIDTH_B == 36) && (DATA_WIDTH_A != 36)) begin
      $fdisplay(STDERR, "%m: a DP16KD in a mode that its model does not know");
      $stop;
    end
  end

  // Yosys ties the resets low. What they would do depends on RESETMODE.
  always @*
    if (RSTA || RSTB) begin
      $fdisplay(STDERR, "%m: the reset of a DP16KD, which its model does not have");
      $stop;
    end

  localparam WIDE = DATA_WIDTH_A == 36;  // A writes, B reads

  wire [35:0] write_a = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3,
    DIB2, DIB1, DIB0, DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3,
    DIA2, DIA1, DIA0};
  wire [35:0] write_b = write_a[35:18];
  wire [13:0] address_a = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
  wire [13:0] address_b = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
  wire on_a = CEA && ({CSA2, CSA1, CSA0} == 0);
  wire on_b = CEB && ({CSB2, CSB1, CSB0} == 0);

  // The cell as 2048 bytes of nine bits. A port's word: its first byte, its bytes, and which bits of them are its own.
  reg [8:0] bytes [0:2047];

  function [10:0] first(input integer width, input [13:0] address);
    first = width == 36 ? {address[13:5], 2'b0} : width == 18 ? {address[13:4], 1'b0} : address[13:3];
  endfunction
  function integer count(input integer width);
    count = width == 36 ? 4 : width == 18 ? 2 : 1;
  endfunction
  function [3:0] place(input integer width, input [13:0] address);  // of a narrow word in its byte
    place = width == 4 ? {1'b0, address[2], 2'b0} : width == 2 ? {1'b0, address[2:1], 1'b0} :
      width == 1 ? {1'b0, address[2:0]} : 4'b0;
  endfunction
  function [8:0] own(input integer width);
    own = width >= 9 ? 9'h1ff : (1 << width) - 1;
  endfunction
  function [3:0] enables(input integer width, input [13:0] address);
    enables = width == 36 ? address[3:0] : width == 18 ? {2'b0, address[1:0]} : 4'b1;
  endfunction

  wire [10:0] first_a = first(DATA_WIDTH_A, address_a), first_b = first(DATA_WIDTH_B, address_b);
  wire [3:0] place_a = place(DATA_WIDTH_A, address_a), place_b = place(DATA_WIDTH_B, address_b);
  wire [3:0] enables_a = on_a && WEA ? enables(DATA_WIDTH_A, address_a) : 4'b0;
  wire [3:0] enables_b = on_b && WEB && !WIDE ? enables(DATA_WIDTH_B, address_b) : 4'b0;

  reg [35:0] read_a, read_b, out_a, out_b;
  integer i, j;
  always @* begin
    read_a = 0;
    read_b = 0;
    for (i = 0; i < count(DATA_WIDTH_A); i = i + 1) begin
      read_a[9 * i +: 9] = bytes[first_a + i];
      for (j = 0; j < 4; j = j + 1)
        if (enables_b[j] && (first_b + j == first_a + i)) read_a[9 * i +: 9] = ~bytes[first_a + i];
    end
    for (i = 0; i < count(DATA_WIDTH_B); i = i + 1) begin
      read_b[9 * i +: 9] = bytes[first_b + i];
      for (j = 0; j < 4; j = j + 1)
        if (enables_a[j] && (first_a + j == first_b + i)) read_b[9 * i +: 9] = ~bytes[first_b + i];
    end
    if (DATA_WIDTH_A < 9) read_a = (read_a >> place_a) & own(DATA_WIDTH_A);
    if (DATA_WIDTH_B < 9) read_b = (read_b >> place_b) & own(DATA_WIDTH_B);
  end

  integer k;
  always @(posedge CLKA) begin
    for (k = 0; k < count(DATA_WIDTH_A); k = k + 1)
      if (enables_a[k])
        bytes[first_a + k] <= (bytes[first_a + k] & ~(own(DATA_WIDTH_A) << place_a)) |
          ((write_a[9 * k +: 9] & own(DATA_WIDTH_A)) << place_a);
    if (on_a) begin
      if (!WEA || WRITEMODE_A == "READBEFOREWRITE") out_a <= read_a;
      else if (WRITEMODE_A == "WRITETHROUGH") out_a <= write_a;
    end
  end
  integer l;
  always @(posedge CLKB) begin
    for (l = 0; l < count(DATA_WIDTH_B); l = l + 1)
      if (enables_b[l])
        bytes[first_b + l] <= (bytes[first_b + l] & ~(own(DATA_WIDTH_B) << place_b)) |
          ((write_b[9 * l +: 9] & own(DATA_WIDTH_B)) << place_b);
    if (on_b) begin
      if (!WEB || WRITEMODE_B == "READBEFOREWRITE") out_b <= read_b;
      else if (WRITEMODE_B == "WRITETHROUGH") out_b <= write_b;
    end
  end

  assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1,
    DOA0} = WIDE ? out_b[17:0] : out_a[17:0];
  assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1,
    DOB0} = DATA_WIDTH_B == 36 ? out_b[35:18] : out_b[17:0];
endmodule

// No registers.
module MULT18X18D(
  input A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0, B17, B16, B15, B14, B13, B12, B11,
    B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0, C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2,
    C1, C0, SIGNEDA, SIGNEDB, SOURCEA, SOURCEB,
  output P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14,
    P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0
);
  wire [17:0] a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
  wire [17:0] b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
  wire signed [18:0] wide_a = {SIGNEDA & A17, a};
  wire signed [18:0] wide_b = {SIGNEDB & B17, b};
  wire signed [37:0] product = wide_a * wide_b;
  assign {P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14,
    P13, P12, P11, P10, P9, P8, P7, P6, P5, P4, P3, P2, P1, P0} = product[35:0];
endmodule

// Of a PLL, that it has a clock and says so: the simulation drives the oscillator's pin with the machine's clock.
module EHXPLLL(
  input CLKI, CLKFB, PHASESEL1, PHASESEL0, PHASEDIR, PHASESTEP, PHASELOADREG, STDBY, PLLWAKESYNC, RST, ENCLKOP,
  output CLKOP, LOCK
);
  parameter PLLRST_ENA = "DISABLED";
  parameter INTFB_WAKE = "DISABLED";
  parameter STDBY_ENABLE = "DISABLED";
  parameter DPHASE_SOURCE = "DISABLED";
  parameter OUTDIVIDER_MUXA = "DIVA";
  parameter OUTDIVIDER_MUXB = "DIVB";
  parameter OUTDIVIDER_MUXC = "DIVC";
  parameter OUTDIVIDER_MUXD = "DIVD";
  parameter CLKI_DIV = 1;
  parameter CLKFB_DIV = 1;
  parameter FEEDBK_PATH = "CLKOP";
  parameter CLKOP_ENABLE = "ENABLED";
  parameter CLKOP_DIV = 1;
  parameter CLKOP_CPHASE = 0;
  parameter CLKOP_FPHASE = 0;
  assign CLKOP = CLKI;
  reg [3:0] edges = 0;
  always @(posedge CLKI) if (!LOCK) edges <= edges + 1;
  assign LOCK = &edges;
endmodule
