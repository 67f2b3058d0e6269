"""Utterances as feature vectors: reading sound files, computing features, keeping them."""
