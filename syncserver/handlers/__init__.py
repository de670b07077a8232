"""What moves text between sockets and sessions; only here is Tornado's web part."""
