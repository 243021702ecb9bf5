"""`huggingface`: what the `datasets` library reads, from a disk or the hub."""
