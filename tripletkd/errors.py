"""The error that is a message for a person."""


class UserError(Exception):
    """Something a person can mend; its message says what was found where, what was expected, and what to do."""
