"""What several quantization passes share."""
