"""Artifact → outputs and times: the part that travels to a board.

The standard library and numpy are imported at module level, an engine only inside the functions
that use it, and every file here parses on Python 3.8 (older JetPack). No torch (except
`rt_torch`), no onnx, no pydantic.
"""
