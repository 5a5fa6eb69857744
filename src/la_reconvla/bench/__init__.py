"""How fast it is, and what limits it."""
