"""Photos in, shards out: data sets, few-shot sets, prompts, augmentation and published shards."""
