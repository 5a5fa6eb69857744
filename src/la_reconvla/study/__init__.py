"""What is run: studies, their cells, evaluations and held-out frames, and what is read from them."""
