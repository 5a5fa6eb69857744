"""``python -m la_reconvla`` is the command ``la-reconvla``."""

from la_reconvla.cli import main

if __name__ == "__main__":
    main()
