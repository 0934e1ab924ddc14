"""The command line: `python -m launcher ...` and the console script `longhaul ...` both start here."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Check the installation, then run the verb that argv names."""
    from launcher.errors import InstallationError
    from launcher.packages import require_one_root

    try:
        require_one_root()
    except InstallationError as error:
        sys.exit(f"error: {error}")
    from launcher.cli import app

    # Help and advice name the command as this person has typed it: the script may not be on their PATH.
    app(prog_name="python -m launcher" if Path(sys.argv[0]).name == "__main__.py" else "longhaul")


if __name__ == "__main__":
    main()
