"""Training of a LoRA on pairs of image and map; `loop.run` does it."""
