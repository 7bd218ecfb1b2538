"""Training: configuration, setup, the trainer and its callbacks, the sampler, schedules and checkpoints
(docs/training.md).
"""
