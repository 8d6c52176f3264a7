"""The embedded backbone: a Stable Diffusion pipeline and a CLIP small enough to ship and to run on a CPU."""
