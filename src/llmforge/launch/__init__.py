"""Starting one training on several hosts: check each of them first, run, and end all when one ends badly."""
