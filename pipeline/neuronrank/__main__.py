"""`python -m neuronrank` is the `neuronrank` command."""

from neuronrank.cli import main

main()
