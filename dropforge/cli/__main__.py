"""`python -m dropforge.cli`."""

from dropforge.cli import main

if __name__ == "__main__":
    main()
