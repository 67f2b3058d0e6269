"""Methods on vectors, in scikit-learn's manner: they learn from the rows of both domains in seconds."""
