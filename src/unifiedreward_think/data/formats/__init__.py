"""Reading the files that training and judging take, and checking their rows."""
