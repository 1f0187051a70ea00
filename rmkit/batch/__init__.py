"""From token sequences to packed batches: the trie, its lengths, the plan of who runs what."""
