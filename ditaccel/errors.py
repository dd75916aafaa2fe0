"""Errors a user can mend: every message says what to do, in one line."""


class DitaccelError(Exception):
    """Base of all errors that ditaccel raises on purpose."""


class ConfigError(DitaccelError, ValueError):
    """An option, preset, method name or config file is wrong."""


class UnsupportedError(DitaccelError):
    """This pipeline, family or combination cannot be accelerated, with the reason."""


class UsageError(DitaccelError):
    """A verb was called at the wrong time, or a file or folder is not usable."""
