"""TRL trainers with what this project adds to them."""
