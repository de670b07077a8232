"""Measurements of the daemon; run them from the root of a checkout."""
