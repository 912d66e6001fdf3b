"""The errors that are messages for a person."""


class UserError(Exception):
    """Something a person can mend; its message says what was found where, what was expected, and what to do."""


class Paused(UserError):
    """A run was stopped at a checkpoint; it goes on from there when it is started again."""


class Busy(UserError):
    """Another process is at the same work; later it can be done."""
