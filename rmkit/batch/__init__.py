"""From token sequences to packed batches: the trie, its lengths, the split over ranks and microbatches."""
