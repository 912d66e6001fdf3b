"""From measurements to differences and verdicts."""
