"""What can go wrong in a model. Every message has what happened, where, the value, the rule, the remedy."""

from __future__ import annotations


class ModelError(Exception):
    """Anything that `llm` refuses to do."""


class ModelConfigError(ModelError, ValueError):
    """The configuration lacks or contradicts something that the model needs."""


class AttentionBackendError(ModelError, ValueError):
    """The attention backend asked for does not exist or cannot be used as asked."""


class ExpertsBackendError(ModelError, ValueError):
    """The way of computing experts that was asked for does not exist or cannot be used as asked."""


class ModelInputError(ModelError, ValueError):
    """The arguments of a forward pass do not go together."""


class InitializationError(ModelError):
    """A parameter has no initial value, or no memory to hold one."""


class ParameterGroupError(ModelError):
    """A parameter cannot be put into an optimizer group."""


class ScheduleError(ModelError, ValueError):
    """The learning rate was asked for at a step that does not exist."""


class GenerationError(ModelError, ValueError):
    """Text cannot be generated as asked."""


class ScoringError(ModelError, ValueError):
    """Text cannot be scored as asked."""


class BaselineError(ModelError, ValueError):
    """The n-gram baseline cannot be counted over the data given."""


class MetricsError(ModelError, ValueError):
    """What a model said cannot be measured: the arrays do not go together, or a file of measures is not one."""


class HuggingFaceError(ModelError):
    """A model cannot be exchanged with Hugging Face."""


class HuggingFaceConfigError(HuggingFaceError, ValueError):
    """A config.json is unreadable, or describes what this program does not compute."""


class HuggingFaceWeightsError(HuggingFaceError, ValueError):
    """Weight files are missing, torn, or do not hold what config.json promises."""


class ExportError(HuggingFaceError, ValueError):
    """A model or tokenizer cannot be written as asked."""


class ProofError(HuggingFaceError):
    """An exported directory does not compute what the model computes, or nothing is there to compare it with."""
