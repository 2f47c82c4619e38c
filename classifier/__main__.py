"""`python -m classifier` is the command `classifier`."""

from classifier.cli import main

if __name__ == "__main__":
    main()
