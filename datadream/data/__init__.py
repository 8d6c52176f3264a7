"""Photos in, shards out: data sets, few-shot draws, prompts, augmentation and published shards."""
