"""From a job to trained networks."""
