"""What runs on the board: build, check and time the engine of a TensorRT bundle.

A bundle carries a copy of this package as `trt/`. It needs the standard library, numpy, the board's
own TensorRT (its Python binding, or `trtexec`) and the NVIDIA driver, and nothing else of ours.
"""
