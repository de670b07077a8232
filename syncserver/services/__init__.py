"""Services: named sets of commands in a registry."""
