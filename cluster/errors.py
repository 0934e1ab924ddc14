"""The exceptions of `cluster`. Messages say what happened, where, the value, the rule and the remedy."""


class ClusterError(Exception):
    """Anything that a run, its storage or its cluster can refuse or suffer."""


class RunRefusedError(ClusterError):
    """The run cannot start as asked: it contradicts what its directory holds."""


class RunBusyError(ClusterError):
    """Another process is writing this run."""

    exit_code = 75
    """Of the command, so that a job that was refused for this is told from one that had the run (EX_TEMPFAIL)."""


class RunNotFoundError(ClusterError):
    """A run or checkpoint named by the user does not exist."""


class ResourcesError(ClusterError):
    """The cluster does not have what the run asks for."""


class StorageError(ClusterError):
    """The storage cannot be written or is full."""


class CheckpointError(ClusterError):
    """A checkpoint is damaged, incomplete or does not fit the run."""


class CheckpointMismatchError(CheckpointError):
    """A loaded checkpoint gives another loss than the one it was saved with."""


class CheckpointDamagedError(CheckpointError):
    """A file of a checkpoint is proven not to be what was written; a new attempt takes the checkpoint before."""


class CheckpointUnreadableError(CheckpointError):
    """A file of a checkpoint, perhaps whole, cannot be read here and now; a new attempt tries the same one again."""


class TrainingFailedError(ClusterError):
    """The workers failed, more often than the run allows."""


class TrackingError(ClusterError):
    """Weights & Biases was asked for by name and cannot be reached."""


class JobError(ClusterError):
    """The Ray Jobs API does not answer, or refuses a request."""


class JobRefusedError(JobError):
    """The Ray Jobs API knows no such job or refuses the token: asking again would not help."""
