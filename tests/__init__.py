"""The tests. A package with a file, since a library that is installed here has one of this name too, which would come first."""
