"""MLflow shows what is trained, while it is trained: one process follows the files and mirrors them in the store."""
