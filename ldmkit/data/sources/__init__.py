"""The data sources that come with ldmkit: one folder or file each."""
