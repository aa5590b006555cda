"""What pruning passes share: coupled channels, their saliency, costs, and the allocation."""
