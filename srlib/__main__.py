"""``python -m srlib`` is the ``srlib`` command."""

from srlib.cli.commands import main

if __name__ == "__main__":
    main()
