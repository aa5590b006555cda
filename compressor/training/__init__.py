"""ONNX graphs as torch modules whose weights and quantization scales can be trained."""
