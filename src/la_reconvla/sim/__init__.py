"""LIBERO behind a small numpy environment: tasks, placements, the scripted expert, collection, rollouts."""
