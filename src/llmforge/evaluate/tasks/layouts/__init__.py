"""The layouts of tasks that are read, a file each. A new one is a file here with `LAYOUT`."""
