"""Model families: loading with the fixes they need, and tiny random models of the same architecture."""
