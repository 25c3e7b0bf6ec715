"""`python3 -m officegrid.guest`: see main."""

from officegrid.guest.main import main

if __name__ == "__main__":
    main()
