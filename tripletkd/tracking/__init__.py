"""What is kept of a run: its record, and its mirror in MLflow."""
