"""What is computed once and kept: latents, the outputs of frozen conditioners, samples."""
