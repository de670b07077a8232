"""Speak to a syncserver daemon from the trusted side."""
