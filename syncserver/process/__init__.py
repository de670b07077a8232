"""The process: its workers, its signs of life, its end."""
