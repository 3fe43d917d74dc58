"""The two families of failure that are not a click's fault, and a right to write that ran out.

`Unavailable` may pass if tried again (broker, store, time-out); `Misconfigured` will not, until a
person mends what the message names.
"""


class Unavailable(Exception):  # noqa: N818  "the store is unavailable" is how it is said
    """Something outside does not answer, or not in time."""


class Misconfigured(Exception):  # noqa: N818
    """A setting, topic, file or collection is not as it must be."""


class LeaseRanOut(Exception):  # noqa: N818
    """Whoever writes may have lost the right to: nothing more was sent."""
