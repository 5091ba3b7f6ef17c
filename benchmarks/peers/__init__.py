"""Public code that steps are held against: one module a peer, each for a checkout that the user has made to run.

Every module has `CONTESTS`, by name, and `differences`, the equality of what both compute; `peers.contest` has what
they share.
"""
