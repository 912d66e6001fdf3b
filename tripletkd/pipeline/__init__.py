"""What the stages and the console command share: a stage at work, the jobs of a suite, and the training of their seeds."""
