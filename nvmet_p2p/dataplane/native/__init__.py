"""The native data plane: the helper process nvmet-p2p-dataplane, its supervision, and the two ways to talk to it."""
