"""Search algorithms, one file each. They are found by name through the registry."""
