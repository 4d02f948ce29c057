"""What a run logs, and what is said when a value leaves its range."""
