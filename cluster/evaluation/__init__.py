"""The held-out loss: measured by the ranks in the loop, or beside the training from committed checkpoints."""
