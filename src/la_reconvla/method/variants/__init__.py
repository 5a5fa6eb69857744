"""What the published method does not have: other maps, regions, heads and decodings."""
