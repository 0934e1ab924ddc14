"""The record of a run, and what is read out of it: W&B, goodput, the post-mortem."""
