"""One seed in, as many independent ones out as there are things that draw at random."""

import numpy as np


def derive(seed: int, *key: int) -> int:
    """A seed below 2**32 for `key`, such as (epoch, row); neighbours are unrelated."""
    return int(np.random.SeedSequence((seed, *key)).generate_state(1)[0])
