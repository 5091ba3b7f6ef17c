"""Performance predictors, one file each. They are found by name through the registry of nasengine."""
