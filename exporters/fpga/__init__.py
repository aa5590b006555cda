"""Back ends of `to_fpga`: from a fixed-point specification to hardware.

`rtl` goes all the way with open tools: an adder graph (`graph`), Verilog (`verilog`, `wrapper`),
simulation (`simulate`, `gates`), synthesis (`synthesis`) and place and route (`route`).
"""
