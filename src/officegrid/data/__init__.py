"""The path all records take: sources, blocks, conversions, sinks."""
