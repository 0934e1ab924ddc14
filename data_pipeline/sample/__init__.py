"""What is shipped for first runs and for tests: five novels of Jane Austen, dialogues, rated and tagged sentences."""

from data_pipeline.sample.shipped import SAMPLE_NAMES, sample_build_config, sample_dataset

__all__ = ["SAMPLE_NAMES", "sample_build_config", "sample_dataset"]
