"""Numbers, images and messages on their way out."""
