"""From weights to measurements."""
