// A machine with the accelerator's ports (configuration tiny) that only moves data, to test the harness with.
// What it does with a program depends on where the program begins: entry / 64 is the mode.
//   0: copies input to output beat by beat; each beat is also traced as a DMA write, and retires
//   1: reads one beat of the input and hangs
//   2: writes one beat behind the output buffer
//   3: reads one beat behind the input buffer and stops with BUS_DMA_READ if the answer is an error
//   4: reads the image in bursts of 16 beats on m_axi_w0 and m_axi_dma at once
//   5: drops an ARVALID that was not accepted
// verilator lint_off WIDTH
module moevit #(parameter [63:0] DIGEST = 0) (
  input clk, input rst, output irq,
  input [11:0] s_axil_awaddr, input [2:0] s_axil_awprot, input s_axil_awvalid, output s_axil_awready,
  input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
  output [1:0] s_axil_bresp, output s_axil_bvalid, input s_axil_bready,
  input [11:0] s_axil_araddr, input [2:0] s_axil_arprot, input s_axil_arvalid, output s_axil_arready,
  output [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output s_axil_rvalid, input s_axil_rready,
  output [39:0] m_axi_dma_araddr, output [7:0] m_axi_dma_arlen, output [2:0] m_axi_dma_arsize,
  output [1:0] m_axi_dma_arburst, output m_axi_dma_arvalid, input m_axi_dma_arready,
  input [127:0] m_axi_dma_rdata, input [1:0] m_axi_dma_rresp, input m_axi_dma_rlast, input m_axi_dma_rvalid,
  output m_axi_dma_rready,
  output [39:0] m_axi_dma_awaddr, output [7:0] m_axi_dma_awlen, output [2:0] m_axi_dma_awsize,
  output [1:0] m_axi_dma_awburst, output m_axi_dma_awvalid, input m_axi_dma_awready,
  output [127:0] m_axi_dma_wdata, output [15:0] m_axi_dma_wstrb, output m_axi_dma_wlast, output m_axi_dma_wvalid,
  input m_axi_dma_wready, input [1:0] m_axi_dma_bresp, input m_axi_dma_bvalid, output m_axi_dma_bready,
  output [39:0] m_axi_w0_araddr, output [7:0] m_axi_w0_arlen, output [2:0] m_axi_w0_arsize,
  output [1:0] m_axi_w0_arburst, output m_axi_w0_arvalid, input m_axi_w0_arready,
  input [127:0] m_axi_w0_rdata, input [1:0] m_axi_w0_rresp, input m_axi_w0_rlast, input m_axi_w0_rvalid,
  output m_axi_w0_rready,
  output trace_retire, output [16:0] trace_marks, output [17:0] trace_ring, output [39:0] trace_events,
  output trace_load_valid, output [16:0] trace_load_pair, output [15:0] trace_load_mask,
  output [127:0] trace_load_data,
  output trace_queue_clear, output trace_queue_valid, output [5:0] trace_queue_expert, output [12:0] trace_queue_token,
  output [15:0] trace_queue_score,
  output trace_act_valid, output [16:0] trace_act_pair, output [15:0] trace_act_mask, output [127:0] trace_act_data,
  output trace_dma_valid, output [16:0] trace_dma_pair, output [15:0] trace_dma_mask, output [127:0] trace_dma_data,
  output trace_kv_valid, output [11:0] trace_kv_addr, output [31:0] trace_kv_mask, output [255:0] trace_kv_data);

  // Registers: writes are stored, reads give them back, except what the machine itself says.
  reg [31:0] bank [0:1023];
  reg have_aw, have_w, b, r;
  reg [11:0] aw;
  reg [31:0] w, value;
  reg busy, done, error;
  reg [1:0] pending;
  reg [31:0] code, retired, cycles;
  wire start = have_aw && have_w && !b && aw == 12'h10 && w[0];
  wire clear = have_aw && have_w && !b && aw == 12'h10 && w[1];
  assign s_axil_awready = !have_aw;
  assign s_axil_wready = !have_w;
  assign s_axil_bvalid = b;
  assign s_axil_bresp = 0;
  assign s_axil_arready = !r;
  assign s_axil_rvalid = r;
  assign s_axil_rdata = value;
  assign s_axil_rresp = 0;
  assign irq = |(pending & bank[8][1:0]);
  wire [3:0] mode = bank[13] >> 6;
  wire [39:0] image = {bank[11], bank[10]}, in = {bank[15], bank[14]}, out = {bank[18], bank[17]};
  reg finish, fail;
  always @(posedge clk) begin
    if (s_axil_awvalid && s_axil_awready) begin have_aw <= 1; aw <= s_axil_awaddr; end
    if (s_axil_wvalid && s_axil_wready) begin have_w <= 1; w <= s_axil_wdata; end
    if (have_aw && have_w && !b) begin
      b <= 1; have_aw <= 0; have_w <= 0;
      bank[aw >> 2] <= w;
      if (aw == 12'h24) pending <= pending & ~w[1:0];
    end
    if (b && s_axil_bready) b <= 0;
    if (r && s_axil_rready) r <= 0;
    if (s_axil_arvalid && s_axil_arready) begin
      r <= 1;
      case (s_axil_araddr >> 2)
        0: value <= 32'h4D4F4556;
        2: value <= DIGEST[31:0];
        3: value <= DIGEST[63:32];
        5: value <= {error, done, busy};
        6: value <= code;
        7: value <= 0;
        9: value <= pending;
        20: value <= retired;
        21: value <= cycles;
        default: value <= s_axil_araddr < 12'h100 ? bank[s_axil_araddr >> 2] : s_axil_araddr;
      endcase
    end
    if (busy) cycles <= cycles + 1;
    if (start) begin busy <= 1; done <= 0; cycles <= 0; end
    if (finish) begin busy <= 0; done <= 1; pending[0] <= 1; end
    if (fail) begin busy <= 0; error <= 1; code <= 3; pending[1] <= 1; end
    if (rst || clear) begin
      busy <= 0; done <= 0; error <= 0; code <= 0; pending <= 0;
    end
    if (rst) begin have_aw <= 0; have_w <= 0; b <= 0; r <= 0; end
  end

  // The mover.
  reg [3:0] state;
  reg [31:0] index, index_w;  // beats moved; beats asked for on each port in mode 4
  reg [31:0] got, got_w;
  reg arv, awv, wv, arv_w;
  reg [127:0] word;
  wire [31:0] beats = bank[16] >> 4, image_beats = bank[12] >> 4;
  wire many = mode == 4;
  assign m_axi_dma_araddr = many ? image + index * 16 : mode == 3 ? in + bank[16] : in + index * 16;
  assign m_axi_dma_arlen = many ? 15 : 0;
  assign m_axi_dma_arsize = 4;
  assign m_axi_dma_arburst = 1;
  assign m_axi_dma_arvalid = arv;
  assign m_axi_dma_rready = 1;
  assign m_axi_dma_awaddr = mode == 2 ? out + bank[19] : out + index * 16;
  assign m_axi_dma_awlen = 0;
  assign m_axi_dma_awsize = 4;
  assign m_axi_dma_awburst = 1;
  assign m_axi_dma_awvalid = awv;
  assign m_axi_dma_wdata = word;
  assign m_axi_dma_wstrb = 16'hFFFF;
  assign m_axi_dma_wlast = 1;
  assign m_axi_dma_wvalid = wv;
  assign m_axi_dma_bready = 1;
  assign m_axi_w0_araddr = image + index_w * 16;
  assign m_axi_w0_arlen = 15;
  assign m_axi_w0_arsize = 4;
  assign m_axi_w0_arburst = 1;
  assign m_axi_w0_arvalid = arv_w;
  assign m_axi_w0_rready = 1;
  wire written = m_axi_dma_bvalid;
  assign trace_retire = written;
  assign trace_marks = written << 16;
  assign trace_ring = index;
  assign trace_events = mode == 6 ? 3 : 0;
  assign trace_dma_valid = written;
  assign trace_dma_pair = index;
  assign trace_dma_mask = 16'hFFFF;
  assign trace_dma_data = word;
  assign trace_act_valid = written && index == 0;
  assign trace_act_pair = 1000;
  assign trace_act_mask = 16'h0081;
  assign trace_act_data = ~word;
  assign trace_load_valid = written && index == 3;
  assign trace_load_pair = 2000;
  assign trace_load_mask = 16'h8001;
  assign trace_load_data = ~word;
  // Beat n brings token n into the queue of expert 63 - n, with the beat's first bytes as its score.
  assign trace_queue_clear = written && index == 2;
  assign trace_queue_valid = written;
  assign trace_queue_expert = 63 - index;
  assign trace_queue_token = index;
  assign trace_queue_score = word;
  assign trace_kv_valid = written && index == 1;
  assign trace_kv_addr = 4095;
  assign trace_kv_mask = 32'h80000001;
  assign trace_kv_data = {2{~word}};
  always @(posedge clk) begin
    finish <= 0; fail <= 0;
    if (start) begin
      index <= 0; index_w <= 0; got <= 0; got_w <= 0; retired <= 0;
      arv <= mode != 2; arv_w <= many; awv <= mode == 2; wv <= mode == 2;
    end
    if (arv && (m_axi_dma_arready || mode == 5)) begin
      arv <= many && index + 16 < image_beats;
      if (many) index <= index + 16;
    end
    if (arv_w && m_axi_w0_arready) begin
      arv_w <= index_w + 16 < image_beats;
      index_w <= index_w + 16;
    end
    if (m_axi_dma_rvalid) begin
      got <= got + 1;
      word <= m_axi_dma_rdata;
      if (mode == 0) begin awv <= 1; wv <= 1; end
      if (mode == 3) begin finish <= m_axi_dma_rresp == 0; fail <= m_axi_dma_rresp != 0; end
    end
    if (m_axi_w0_rvalid) got_w <= got_w + 1;
    if (many && busy && !finish && got == image_beats && got_w == image_beats) begin finish <= 1; got <= 0; end
    if (awv && m_axi_dma_awready) awv <= 0;
    if (wv && m_axi_dma_wready) wv <= 0;
    if (written) begin
      retired <= retired + 1;
      index <= index + 1;
      arv <= mode == 0 && index + 1 < beats;
      finish <= mode == 2 || index + 1 == beats;
    end
    if (rst || clear) begin arv <= 0; arv_w <= 0; awv <= 0; wv <= 0; end
  end
endmodule
