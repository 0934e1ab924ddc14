"""What can go wrong at the edge. Imports nothing: these are raised before anything else is loaded."""

from __future__ import annotations


class LauncherError(Exception):
    """A failure that a person can act on; its text is the whole message."""

    exit_code = 1


class ConfigError(LauncherError):
    """A configuration file or an override that cannot be used."""

    exit_code = 2


class UsageError(LauncherError):
    """A command line that makes no sense."""

    exit_code = 2


class InstallationError(LauncherError):
    """The package is not installed as it has to be."""


class InterruptError(LauncherError):
    """Stopped by the person at the keyboard."""

    exit_code = 130  # 128 + SIGINT, as shells count
