"""Several attacks, and the worst case over them."""
