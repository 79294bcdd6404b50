"""Networks: layers, features and weights, nothing about diffusion or attacks."""
