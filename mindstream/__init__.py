"""The command line and the demonstration: where everything is put together."""
