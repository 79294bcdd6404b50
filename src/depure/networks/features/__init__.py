"""Features of networks, and what is measured on them."""
