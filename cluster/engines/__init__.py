"""Two engines behind one protocol, DeepSpeed and plain torch: the training loop knows the protocol alone."""
