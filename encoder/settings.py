"""Settings, read from the environment: `MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS=…` and so on.

Every problem is reported at once, each naming its variable; secrets are never shown.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableSetting

PREFIX: Final = "MINDSTREAM_"
DELIMITER: Final = "__"

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/,\[\]]+):\d{1,5}")


class SettingsError(ValueError):
    """One or more settings are wrong; the message lists them all."""


def _topic(name: str) -> str:
    if not _TOPIC.fullmatch(name) or name in {".", ".."}:
        raise ValueError("a topic name has 1 to 249 of the characters a-z A-Z 0-9 . _ -")
    return name


def _servers(value: str) -> str:
    wrong = [one for one in value.split(",") if not _SERVER.fullmatch(one.strip())]
    if wrong:
        raise ValueError(f"expected host:port[,host:port...], got {', '.join(map(repr, wrong))}")
    return value


def _release_url(value: str) -> str:
    if "://" in value and urlsplit(value).password is not None:
        raise ValueError(
            "no password here, where it would be shown; storage reads its own from the environment"
        )
    return value


def _milvus_uri(value: str) -> str:
    if "://" in value:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("expected http://host:port, https://host:port or a path ending in .db")
        if "@" in parts.netloc:
            raise ValueError("no user and password here, where they would be shown; use …TOKEN")
    elif not value.endswith(".db"):
        raise ValueError("a path for Milvus Lite must end in .db; a server starts with http://")
    return value


Topic = Annotated[str, AfterValidator(_topic)]
Seconds = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Section):
    """How to reach Kafka, and what the topics are called."""

    bootstrap_servers: Annotated[str, AfterValidator(_servers)] = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: SecretStr | None = None
    clicks_topic: Topic = "mindstream.clicks"
    windows_topic: Topic = "mindstream.windows"
    dead_letters_topic: Topic = "mindstream.dead-letters"
    releases_topic: Topic = "mindstream.releases"
    items_topic: Topic = "mindstream.items"

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        given = (self.sasl_mechanism, self.sasl_username, self.sasl_password)
        if self.security_protocol.startswith("SASL") and None in given:
            raise ValueError(
                f"security_protocol {self.security_protocol} needs sasl_mechanism, sasl_username"
                " and sasl_password"
            )
        names = [self.clicks_topic, self.windows_topic, self.dead_letters_topic]
        names += [self.releases_topic, self.items_topic]
        if len(set(names)) < len(names):
            raise ValueError("the five topics must have different names")
        return self


class MilvusSettings(_Section):
    """How to reach Milvus: a server's address, or a folder for the embedded Milvus Lite."""

    uri: Annotated[str, AfterValidator(_milvus_uri)] = "./mindstream.db"
    token: SecretStr | None = None
    tls_cafile: str | None = None
    tls_certfile: str | None = None
    tls_keyfile: str | None = None
    tls_server_name: str | None = None
    timeout_s: Seconds = 10.0

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        files = (self.tls_certfile, self.tls_keyfile, self.tls_cafile)
        if any((*files, self.tls_server_name)) and not self.uri.startswith("https://"):
            raise ValueError("tls_* are for a uri that starts with https://")
        if any(files[:2]) and None in files:
            raise ValueError("a client certificate needs tls_certfile, tls_keyfile and tls_cafile")
        return self


class WorkerSettings(_Section):
    """One worker of the update service."""

    group_id: Annotated[str, Field(min_length=1)] = "mindstream"
    instance_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] | None = None
    max_batch_clicks: Annotated[int, Field(ge=1, le=100_000)] = 65_536
    batch_target_s: Seconds = 0.5
    session_timeout_s: Seconds = 30.0
    max_poll_interval_s: Seconds = 300.0
    step_budget_s: Seconds = 60.0
    stop_budget_s: Seconds = 20.0
    max_behind_s: Seconds = 3.0
    commit_every_s: Annotated[float, Field(ge=0)] = 0.25
    backfill_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    transaction_timeout_s: Seconds = 60.0
    max_future_s: Annotated[float, Field(ge=0)] = 300.0
    click_retention_s: Seconds = 7 * 86_400.0
    dead_letter_retention_s: Seconds = 30 * 86_400.0
    max_rejected_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    encoder_threads: Annotated[int, Field(ge=1)] = 1
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 9108

    @property
    def open_transaction_s(self) -> float:
        """How long a transaction whose owner died may hold readers back, at most."""
        return self.transaction_timeout_s + 30.0  # the broker looks for them now and then

    @property
    def erasure_retention_s(self) -> float:
        """How long an erasure is remembered: beyond any click or dead letter that still exists."""
        # Topics drop whole segments, none of which spans more than the retention.
        return 2 * max(self.click_retention_s, self.dead_letter_retention_s)

    @model_validator(mode="after")
    def _budgets_nest(self) -> Self:
        # Between two polls three batches may be waited for, which overlap: while the first is
        # committed and the second written, while that is committed and the third written, and while
        # that is committed. Then rows are written again, or erasures expire. Each takes a step's
        # budget at most.
        if 4 * self.step_budget_s >= self.max_poll_interval_s:
            raise ValueError(
                f"step_budget_s ({self.step_budget_s:g}) must be less than a quarter of"
                f" max_poll_interval_s ({self.max_poll_interval_s:g})"
            )
        return self


class ReleaseSettings(_Section):
    """Where releases are kept, and how the fleet goes over to one.

    `switch_timeout_s` is how long a publisher waits for workers to fill a release, `grace_s` how
    long the one before it is kept up to date, so that readers can be pointed back at it.
    """

    url: Annotated[str, AfterValidator(_release_url)] = "./releases"
    cache: str = "./.cache/releases"
    switch_timeout_s: Seconds = 3600.0
    grace_s: Annotated[float, Field(ge=0)] = 86_400.0


class LookupSettings(_Section):
    """The look-up service.

    `consistency` is Milvus's level where a request names none. Releases with at most
    `items_in_memory` items are searched in the service's memory.
    """

    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    consistency: Literal["Strong", "Bounded", "Session", "Eventually"] = "Bounded"
    items_in_memory: Annotated[int, Field(ge=0)] = 200_000


class MonitorSettings(_Section):
    """The monitor of the release in use.

    Attributes:
        interval_s: from measuring to measuring.
        users: to draw, whose windows are kept and whose clicks are predicted.
        clicks: the newest of theirs, that recall is of.
    """

    interval_s: Seconds = 60.0
    users: Annotated[int, Field(ge=1)] = 10_000
    clicks: Annotated[int, Field(ge=1)] = 10_000
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65_535)] = 9109


class TrainerSettings(_Section):
    """The scheduled trainer.

    Attributes:
        examples: most training examples of a run, which its time is in proportion to; the preset's
            if None.
        checkpoint_every_s: what a kill may cost, in seconds of training.
        gate_margin: of Recall@20, absolute, by which a release may be behind the one in use,
            popularity or item-kNN on the newest clicks.
        buffer_clicks: most clicks to hold in memory; more are sorted on disk.
        click_cache: folder of the clicks read from the topic so far; `clicks` in the releases'
            cache if None.
        horizon_days: clicks of the topic that are older are not trained on, and are dropped from
            the cache; those that the topic no longer has if None.
        item_fields: name of each field of the items topic that items are made of, to its kind: a
            text's `words`, one or several values (`value`), or a number's `band`.
        window_length: clicks that releases read, at most the windows' own `window_length`, which it
            is if None; a mix reads what windows have beyond it.
        mix: fit what interests, own items and recent popularity count for candidates; rows of
            interests then hold the newest clicks, too.
        marks: let searches leave out own items, where a trial says that users do not come back to
            them, and there is no mix; vectors are then half as long again.
    """

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.05
    examples: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 60.0
    gate_margin: Annotated[float, Field(ge=0, le=1)] = 0.01
    buffer_clicks: Annotated[int, Field(ge=1000)] = 10_000_000
    click_cache: str | None = None
    horizon_days: Annotated[float, Field(gt=0)] | None = None
    item_fields: dict[str, Literal["value", "words", "band"]] = {}
    window_length: Annotated[int, Field(ge=1)] | None = None
    mix: bool = False
    marks: bool = True


class LogSettings(_Section):
    """Logging. `auto` is a console on a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(BaseSettings):
    """All settings of mindstream."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    milvus: MilvusSettings = MilvusSettings()
    worker: WorkerSettings = WorkerSettings()
    releases: ReleaseSettings = ReleaseSettings()
    trainer: TrainerSettings = TrainerSettings()
    lookup: LookupSettings = LookupSettings()
    monitor: MonitorSettings = MonitorSettings()
    log: LogSettings = LogSettings()
    window_length: Annotated[int, Field(ge=1, le=10_000, validate_default=True)] = 50

    @field_validator("window_length")
    @classmethod
    def _releases_read_what_windows_have(cls, length: int, info: ValidationInfo) -> int:
        trainer = info.data.get("trainer")  # missing if it is wrong itself
        if trainer is not None and (trainer.window_length or 0) > length:
            raise ValueError(
                f"window_length ({length}) must be at least trainer.window_length"
                f" ({trainer.window_length})"
            )
        return length


def load_settings(**overrides: object) -> Settings:
    """The settings from the environment, or all that is wrong with them.

    Raises:
        SettingsError: names every variable at fault and what is wrong with it.
    """
    lines = [f"  {name}: no such setting" for name in _unknown_variables()]
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks them
    except UnreadableSetting as exc:
        lines.append(f"  {exc}")
    except ValidationError as exc:
        lines += [
            f"  {_variable(problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"
            for problem in exc.errors(include_url=False, include_input=False)
        ]
    if lines:
        raise SettingsError("\n".join(["wrong settings:", *lines]))
    return settings


def _unknown_variables() -> list[str]:
    """Variables with our prefix that no setting reads; pydantic tells only of nested ones."""
    known = tuple(PREFIX + name.upper() for name in Settings.model_fields)
    return sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name.upper().split(DELIMITER)[0] not in known
    )


def _variable(loc: tuple[int | str, ...]) -> str:
    return PREFIX + DELIMITER.join(str(part) for part in loc).upper()
