"""The command line: one file a verb; nothing else of the project prints."""
