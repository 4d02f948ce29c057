"""Records in, judgments out: settings, preparation of prompts, running, storing, the Python API and the command."""
