"""Replies of released judges, in the formats that they were trained to write, read into our verdicts."""
