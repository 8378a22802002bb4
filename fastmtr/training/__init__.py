"""From behaviour logs to a trained model: cleaning, tasks, splits, samples; losses and the trainer."""
