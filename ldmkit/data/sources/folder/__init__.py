"""`folder`: a person's own images, with captions, classes and label maps beside them."""
