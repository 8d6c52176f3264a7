"""Generate the synthetic images and publish them as a dataset."""
