"""What networks are made of: layers, the parts of G and D, ray conditioning, warm starts."""
