"""What every backend needs: attention, loss head, weights on disk, processes."""
