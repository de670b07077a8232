"""Wire protocols: text in, messages out; events in, text out."""
