"""Feature vectors of utterances: reading sound files, extracting features, caching them."""
