"""What stands around the network: a stream interface, its testbench, and a top with few pins."""

from __future__ import annotations

from exporters.fpga.verilog import TOP, in_bits, out_bits
from runtimes.fixed.spec import Spec

# Hold `en` low and the whole pipeline waits: a receiver that is not ready stalls it.
_STREAM = """\
// One vector a clock where `in_valid` and `in_ready` are high; its result comes {stages} clocks
// after the edge that took it, while `out_ready` is high.
module {top}_stream (
    input wire clk, input wire rst,
    input wire in_valid, output wire in_ready, input wire [{x}:0] in_data,
    output wire out_valid, input wire out_ready, output wire [{y}:0] out_data
);
    reg [{x}:0] taken;
    reg [{stages}:0] full;
    wire en = out_ready | ~full[{stages}];
    assign in_ready = en;
    assign out_valid = full[{stages}];
    always @(posedge clk) if (en) taken <= in_data;
    always @(posedge clk)
        if (rst) full <= 0;
        else if (en) full <= {{full[{last}:0], in_valid}};
    {top}_core core (.clk(clk), .en(en), .x(taken), .y(out_data));
endmodule
"""

# A vector is shifted in bit by bit, so that place and route needs six pins and not hundreds.
_SERIAL = """\
module {top}_serial (
    input wire clk, input wire shift, input wire din, input wire load, output wire dout
);
    reg [{x}:0] taken;
    reg [{y}:0] out;
    wire [{y}:0] result;
    always @(posedge clk) if (shift) taken <= {{taken[{x1}:0], din}};
    {top}_core core (.clk(clk), .en(1'b1), .x(taken), .y(result));
    always @(posedge clk) out <= load ? result : {{1'b0, out[{y}:1]}};
    assign dout = out[0];
endmodule
"""

# Vectors come and go with gaps drawn from a shift register, so that the handshake is tried too.
_BENCH = """\
// +inputs=FILE and +expected=FILE hold one vector a line, hexadecimal; +outputs=FILE gets results.
`timescale 1ns / 1ps
module {top}_bench;
    reg clk = 0, rst = 1, in_valid = 0, out_ready = 0, have = 0;
    reg [{x}:0] in_data = 0;
    reg [{y}:0] want = 0;
    wire in_ready, out_valid;
    wire [{y}:0] out_data;
    reg [15:0] dice = 16'hACE1;
    integer inputs, expected, outputs, got, sent = 0, seen = 0, wrong = 0, idle = 0, checked = 0;
    reg [2047:0] name;
    {top}_stream dut (
        .clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
        .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
    );
    initial begin
        if (!$value$plusargs("inputs=%s", name)) name = "inputs.hex";
        inputs = $fopen(name, "r");
        expected = 0;
        if ($value$plusargs("expected=%s", name)) expected = $fopen(name, "r");
        outputs = 0;
        if ($value$plusargs("outputs=%s", name)) outputs = $fopen(name, "w");
        repeat (4) begin #5 clk = 1; #5 clk = 0; end
        rst = 0;
        while (idle < 64) begin
            #1 dice = {{dice[14:0], dice[15] ^ dice[13] ^ dice[12] ^ dice[10]}};
            out_ready = dice[3:0] != 0;
            if (!have) have = $fscanf(inputs, "%h", in_data) == 1;
            in_valid = have & (dice[7:4] != 0);
            #1 idle = have | out_valid ? 0 : idle + 1;
            if (out_valid & out_ready) begin
                seen = seen + 1;
                if (outputs != 0) $fwrite(outputs, "%h\\n", out_data);
                if (expected != 0) begin
                    got = $fscanf(expected, "%h", want);
                    checked = checked + got;
                    if (got != 1 || want !== out_data) wrong = wrong + 1;
                end
            end
            if (in_valid & in_ready) begin sent = sent + 1; have = 0; end
            #3 clk = 1;
            #5 clk = 0;
        end
        if (outputs != 0) $fclose(outputs);
        $display("%0d sent, %0d received, %0d compared, %0d wrong", sent, seen, checked, wrong);
        $finish;
    end
endmodule
"""


def stream(spec: Spec, stages: int) -> str:
    """The network behind valid/ready."""
    return _filled(_STREAM, spec, stages)


def serial(spec: Spec, stages: int) -> str:
    """The network behind a shift register, for place and route."""
    return _filled(_SERIAL, spec, stages)


def bench(spec: Spec, stages: int) -> str:
    """A testbench of the stream."""
    return _filled(_BENCH, spec, stages)


def _filled(text: str, spec: Spec, stages: int) -> str:
    x, y = in_bits(spec) - 1, out_bits(spec) - 1
    return text.format(top=TOP, x=x, x1=max(0, x - 1), y=y, stages=stages, last=stages - 1)
