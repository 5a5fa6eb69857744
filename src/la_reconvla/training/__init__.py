"""Training a policy, keeping it, and acting with it."""
