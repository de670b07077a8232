"""Who may come in: connections taken, counted by address, and turned away."""
