"""A drawn world with known contents: the embedded data set on which every stage runs without a GPU."""
