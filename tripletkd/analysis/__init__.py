"""From measurements to differences and verdicts: statistics.py the formulas, comparison.py the suite, ablation.py."""
