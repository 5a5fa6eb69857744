"""Vision-language models behind one protocol, one file per family."""
