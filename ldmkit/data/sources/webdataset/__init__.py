"""`webdataset`: tar shards on a disk."""
