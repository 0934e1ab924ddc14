"""From raw text to batches: readers, cleaning, tokenizer, Arrow shards, sample order. Torch-free."""
