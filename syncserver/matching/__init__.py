"""What filters are made of, and what an index of them looks at."""
