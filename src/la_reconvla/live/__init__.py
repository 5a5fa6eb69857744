"""A page on this machine to try policies in the live simulator: the command ``try``."""
