"""Reports of trainings: what was trained on what, how it went, what it cost, and what came out."""
