"""New rows learned from the source model: its hidden states and probabilities of the same text in old tokens."""
