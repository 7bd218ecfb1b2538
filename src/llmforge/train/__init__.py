"""Training: configuration, the stage loop, schedule, guards, checkpoints and monitoring
(docs/training.md).
"""
