"""Sentences as integers, word vectors, and sentences that are made; knows nothing of torch."""
