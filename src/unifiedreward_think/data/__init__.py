"""Preference data: reading and checking the files that the stages train on."""
