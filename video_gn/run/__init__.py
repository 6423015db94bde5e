"""A run's folder on disk: config, checkpoints, log."""
