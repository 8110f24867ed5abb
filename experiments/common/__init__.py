"""What the experiments share: data, models, the training loop, records, claims and plots."""
