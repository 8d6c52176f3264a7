"""Adapt the generator to the shots: LoRA training on one device, and its fan-out over a cluster."""
