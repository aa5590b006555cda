"""From a float model to a fixed-point one, for `quantize_fixed`.

`read` takes an ONNX graph apart, `student` trains it in fixed point, `build` writes what
`runtimes/fixed` defines.
"""
