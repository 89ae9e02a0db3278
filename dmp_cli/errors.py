"""What can go wrong, as the user is told of it.

DmpError
├── UsageError       exit 2  what was asked for makes no sense; nothing was loaded or written
├── ImageError       exit 3  one input cannot be used; the others go on
├── NoInputError     exit 4  no input matched
├── ModelError       exit 5  a model is not to be had, or not valid
└── ResourceError    exit 6  the surroundings failed: disk, output folder, accelerator
    └── DeviceError          an accelerator failed, and another may not

Anything else that is raised is a bug of dmp: exit 1, with its traceback.
"""


class DmpError(Exception):
    """An error with a message for the user and, as `hint`, what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(DmpError):
    """What was asked for makes no sense."""

    exit_code = 2


class ImageError(DmpError):
    """One input cannot be read, predicted or written; the others can.

    With `again` it was the moment that failed and not the input: the next run tries it again.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "", again: bool = False) -> None:
        super().__init__(message, hint)
        self.again = again


class NoInputError(DmpError):
    """No input matched."""

    exit_code = 4


class ModelError(DmpError):
    """A model is not to be had, or its files are not valid."""

    exit_code = 5


class ResourceError(DmpError):
    """The surroundings failed: disk full, output not writable, accelerator missing or lost."""

    exit_code = 6


class DeviceError(ResourceError):
    """An accelerator failed while it drew: a run that has others can go on with those."""
