"""Fixed-point models: their specification (`fixed.json`) and the integers it stands for.

Everything that computes such a model (an adder graph, Verilog, a netlist, an HLS project) is held
against `reference`, which needs numpy alone.
"""
