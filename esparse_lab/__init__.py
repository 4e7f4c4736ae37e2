"""N:M sparsity of language models."""
