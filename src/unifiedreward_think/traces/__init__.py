"""Chains of thought to train on: from a teacher, and which of them are kept."""
