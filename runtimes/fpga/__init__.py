"""Engines for an FPGA artifact that need no FPGA: words on buses, and the netlist as gates."""
