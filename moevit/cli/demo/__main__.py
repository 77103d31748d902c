"""``python -m moevit.cli.demo``."""

from moevit.cli.demo.run import main

if __name__ == "__main__":
    main()
