"""Image embeddings that are computed once: for trainings that change nothing before the decoder."""
