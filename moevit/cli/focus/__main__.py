"""``python -m moevit.cli.focus``, which is what `make focus` runs."""

from moevit.cli.focus.run import main

if __name__ == "__main__":
    main()
