"""The library behind the stages: data, networks, losses, training, evaluation, statistics, reports."""
