"""What stages and commands share: a stage at work, the jobs of a suite, and the training of their seeds."""
