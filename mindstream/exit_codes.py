"""Exit codes of the commands, after sysexits.h."""

from typing import Final

EXIT_DIFFERENT: Final = 1
"""An audit found differences, a look-up found nothing, or a release is refused."""

EXIT_UNAVAILABLE: Final = 75
"""EX_TEMPFAIL: something outside did not answer; starting again may succeed and loses nothing."""

EXIT_MISCONFIGURED: Final = 78
"""EX_CONFIG: will fail again until what the message names is mended."""
