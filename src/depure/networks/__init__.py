"""Networks: classifiers, diffusion models and features, and the door for their weights."""
