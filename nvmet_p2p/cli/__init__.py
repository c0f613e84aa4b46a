"""The nvmet-p2p command; talks to a running daemon by JSON-RPC alone."""
