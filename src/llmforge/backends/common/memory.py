"""What of a GPU's memory the shared weights may take."""


def fits_gathered(weights: int, memory: int) -> bool:
    """Whether a GPU of `memory` bytes can keep `weights` bytes, all that ranks share, from the forward to the backward pass:
    they take at most a tenth of it. Then they are gathered once for a micro-batch, not twice.
    """
    return 10 * weights <= memory
