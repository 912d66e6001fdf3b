"""From weights to a Measurement: measure.py measures, metrics.py has a function a figure, measurement.py the file."""
