"""Everything that can go wrong between a corpus and a batch, as one exception tree."""


class DataError(Exception):
    """Root of the tree: something about text, tokenizer, dataset or order is not as it must be."""


class CorpusError(DataError):
    """The raw text cannot be found or read."""


class TokenizerError(DataError):
    """A tokenizer cannot be trained, loaded or used."""


class SealError(DataError):
    """A sealed JSON document is torn, altered or not one."""


class DatasetError(DataError):
    """A dataset cannot be built, or is not there."""


class DatasetDamagedError(DatasetError):
    """A dataset's files are not what its manifest says."""


class OrderError(DataError):
    """Mixture, stages, sequence length or steps do not fit the data."""
