"""Pre-trained models and the LoRA weights added to them."""
