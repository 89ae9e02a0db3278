"""`python -m dmp_cli` is `dmp`."""

from dmp_cli.cli import main

main()
