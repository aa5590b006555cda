"""Training a compressed module back towards the original: teacher outputs, losses, the loop."""
