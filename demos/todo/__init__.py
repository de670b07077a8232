"""A to-do list on SQLite whose pages stay in step through syncserver; see README.rst."""
