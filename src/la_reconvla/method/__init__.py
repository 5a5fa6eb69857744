"""The method, in pure PyTorch and without I/O. Read: saliency, mask, decoder, actions, objective, policy."""
