"""Plain PyTorch language models. Importing this package loads no torch, so that `--help` stays quick."""
