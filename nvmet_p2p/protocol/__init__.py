"""Sans-IO protocol machines: no socket, no clock.

``tcp_target`` and ``tcp_host`` are the two ends of an NVMe/TCP connection, ``tcp_common`` is what they share,
``events`` what they report; ``sgl`` reads from a command how its data travels; ``digest`` is CRC32C.
"""
