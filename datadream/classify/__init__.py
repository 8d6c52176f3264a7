"""Train and test CLIP classifiers on real and synthetic images."""
