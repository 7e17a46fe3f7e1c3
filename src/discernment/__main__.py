"""`python -m discernment` is the command `discern`."""

from discernment.cli.main import main

if __name__ == "__main__":
    main()
