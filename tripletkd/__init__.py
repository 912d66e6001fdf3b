"""The library behind the stages: data, networks, losses, training, evaluation, statistics, reports."""


class Problem(Exception):
    """Something a person can mend; its message says what was found where, what was expected, and what to do."""
