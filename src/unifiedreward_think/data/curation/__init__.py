"""Checking, cleaning, deduplicating and splitting imported records."""
