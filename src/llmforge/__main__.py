"""`python -m llmforge`: what `torchrun` and `colossalai run` start."""

from llmforge.cli.main import main

if __name__ == "__main__":
    main()
