"""Networks: layers and weights, nothing about diffusion or attacks."""
