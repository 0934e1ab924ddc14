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


class BaselineError(ModelError, ValueError):
    """The n-gram baseline cannot be counted over the data given."""
