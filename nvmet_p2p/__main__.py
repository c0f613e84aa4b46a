"""``python -m nvmet_p2p`` is the nvmet-p2p command."""

from __future__ import annotations

from nvmet_p2p.cli.main import main

if __name__ == "__main__":
    main()
