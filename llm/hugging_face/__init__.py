"""Models exchanged with Hugging Face: import, export, and the proof that both sides compute the same.

Imports neither transformers nor, for what reads a configuration, torch.
"""
