"""`digits`: the handwritten digits that scikit-learn ships inside its wheel."""
