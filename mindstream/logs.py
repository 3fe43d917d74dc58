"""Logging: structlog for us, and the libraries' own loggers through the same pipe."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from encoder.settings import LogSettings


def configure_logging(settings: LogSettings) -> None:
    """A console on a terminal, JSON otherwise, to standard error."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks: the default on a console shows local variables, secrets among them.
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    final: list[Processor] = [] if console else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *final,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("consumers", "encoder", "training", "lookup", "mindstream"):
        logging.getLogger(ours).setLevel(settings.level.upper())
    # Its chatter names record keys, which are user ids.
    logging.getLogger("kafka").setLevel(logging.WARNING)
    # It warns whenever another thread held the interpreter lock for 0.1 s.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
