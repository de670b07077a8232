"""Engines: the log and the grants, one file for each store."""
