"""What the example scripts share: models, tasks, options, training, checkpoints, logs and pictures."""
