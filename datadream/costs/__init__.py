"""What a run takes before it starts: each stage's units, memory, disk, hours and price, where it stops scaling, and
what must be there.

Units are counted exactly, from the same plans that the stages carry out. Seconds are units times constants: measured
ones of the embedded backbone on CPUs, and modelled ones of Stable Diffusion and CLIP, which no GPU has run yet.
"""
