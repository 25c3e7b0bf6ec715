"""Which programs can talk to which. Bump PROTOCOL when a message changes incompatibly."""

PROTOCOL = 1
PROTOCOL_OLDEST = 1  # the oldest worker or client this release still serves
PROTOCOL_HEADER = "officegrid-protocol"
