"""The canonical data set, where its images come from, and batches of it."""
