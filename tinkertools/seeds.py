"""Seeds made of seeds: chance that is the same whenever a run is repeated, and of its own at each place in it."""

import hashlib


def derived(*parts: object) -> int:
    """A seed of 31 bits from others and words that say what it is for: equal for equal parts, else as if by chance."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
