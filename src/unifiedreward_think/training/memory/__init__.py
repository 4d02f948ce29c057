"""How much memory a stage takes, computed from its config."""
