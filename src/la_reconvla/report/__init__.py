"""What is seen of a study."""
