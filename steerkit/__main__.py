"""`python -m steerkit`, for where no script is on the path."""

from steerkit.cli import main

if __name__ == "__main__":
    main()
