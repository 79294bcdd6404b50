"""What an attack may ask of a defence: expected gradients, logits and margins, recorded."""
