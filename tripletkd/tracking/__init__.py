"""The mirror of runs, exports and tables in MLflow."""
