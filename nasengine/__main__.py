"""`python -m nasengine`."""

from nasengine._cli.main import run

run()
