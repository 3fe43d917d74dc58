"""The two families of failure that are not a click's fault.

`Unavailable` may pass if tried again (broker, store, time-out); `Misconfigured` will not, until a
person mends what the message names.
"""


class Unavailable(Exception):  # noqa: N818  "the store is unavailable" is how it is said
    """Something outside does not answer, or not in time."""


class Misconfigured(Exception):  # noqa: N818
    """A setting, topic, file or collection is not as it must be."""
