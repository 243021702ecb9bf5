"""One recipe from data to report, in one directory."""
