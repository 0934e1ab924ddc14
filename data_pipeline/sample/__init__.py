"""Text that is shipped with the program: five novels of Jane Austen, for a first run and for tests."""

from data_pipeline.sample.shipped import SAMPLE_NAMES, sample_build_config, sample_dataset

__all__ = ["SAMPLE_NAMES", "sample_build_config", "sample_dataset"]
