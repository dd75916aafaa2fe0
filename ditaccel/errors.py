"""Errors that a user can fix: every message says what to do, in one line."""


class DitaccelError(Exception):
    """Base of all errors that ditaccel raises on purpose.

    Args:
        line: what is wrong and what to do, in one line.
        argument: name of the argument that is wrong, which is put in front of the line; the command
            line shows it as its option (`out` as `--out`). "" where no single argument is wrong.
    """

    def __init__(self, line: str = "", argument: str = "") -> None:
        super().__init__(line)
        self.line, self.argument = line, argument

    def __str__(self) -> str:
        return f"{self.argument} {self.line}" if self.argument else self.line


class ConfigError(DitaccelError, ValueError):
    """An option, preset, method name or config file is wrong."""


class UnsupportedError(DitaccelError):
    """This pipeline, family or combination cannot be accelerated, with the reason."""


class UsageError(DitaccelError):
    """A verb was called at the wrong time, or a file or folder is not usable."""
