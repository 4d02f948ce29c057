"""Checkpoints that can be trusted, and what happens on a fault."""
