"""Public data sets, declared in YAML, turned into records."""
