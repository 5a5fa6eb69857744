"""A policy behind a network port, and policies behind others' ports, in openpi's wire format."""
