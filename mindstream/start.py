"""What every command does first."""

from encoder.settings import Settings, load_settings
from mindstream.logs import configure_logging


def settings() -> Settings:
    """Read the settings, and set logging up as they say.

    Raises:
        SettingsError: names every setting that is wrong.
    """
    loaded = load_settings()
    configure_logging(loaded.log)
    return loaded
