"""`python -m moevit.cli` is `moevit`."""

from moevit.cli import main

main()
