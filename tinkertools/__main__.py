"""`python -m tinkertools` is `tt`."""

from tinkertools.cli import main

main()
