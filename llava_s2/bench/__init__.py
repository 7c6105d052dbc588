"""What a tower costs and what it brings: FLOPs, throughput, and scores against FLOPs."""
