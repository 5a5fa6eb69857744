"""Vision-language models behind one protocol, one file a family."""
