"""`scenes`: images drawn here, each with a caption, a label map, boxes and a class."""
