"""Settings: every problem at once, by the name of its variable, secrets never shown."""

import pytest

from encoder.settings import SettingsError, load_settings
from mindstream.environment import child_environment, environment_of


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("MINDSTREAM_"):
            monkeypatch.delenv(name)


def test_every_problem_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One start tells all that must be mended."""
    monkeypatch.setenv("MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS", "kafka")
    monkeypatch.setenv("MINDSTREAM_MILVUS__URI", "milvus")
    monkeypatch.setenv("MINDSTREAM_WORKER__HTTP_PORT", "x")
    monkeypatch.setenv("MINDSTREAM_WORKER__STEPBUDGET", "3")
    monkeypatch.setenv("MINDSTREAM_WINDOWLENGTH", "3")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    for name in (
        "MINDSTREAM_KAFKA__BOOTSTRAP_SERVERS",
        "MINDSTREAM_MILVUS__URI",
        "MINDSTREAM_WORKER__HTTP_PORT",
        "MINDSTREAM_WORKER__STEPBUDGET",
        "MINDSTREAM_WINDOWLENGTH",
    ):
        assert name in text


def test_releases_read_no_more_than_windows_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers would refuse such a release, after all of its training."""
    monkeypatch.setenv("MINDSTREAM_TRAINER__WINDOW_LENGTH", "60")
    with pytest.raises(SettingsError, match=r"MINDSTREAM_WINDOW_LENGTH: window_length \(50\) must"):
        load_settings()
    monkeypatch.setenv("MINDSTREAM_WINDOW_LENGTH", "60")
    assert load_settings().trainer.window_length == 60


def test_budgets_must_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries must end before the group gives the worker up."""
    monkeypatch.setenv("MINDSTREAM_WORKER__STEP_BUDGET_S", "150")
    with pytest.raises(SettingsError, match=r"step_budget_s \(150\) must be less than a quarter"):
        load_settings()


def test_erasures_outlive_clicks_and_dead_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the longer of both: a topic keeps a record for up to twice its retention."""
    assert load_settings().worker.erasure_retention_s == 2 * 30 * 86_400
    monkeypatch.setenv("MINDSTREAM_WORKER__CLICK_RETENTION_S", "8640000")
    assert load_settings().worker.erasure_retention_s == 2 * 8_640_000


def test_sasl_needs_all_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-configured login is told before anything connects."""
    monkeypatch.setenv("MINDSTREAM_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    with pytest.raises(SettingsError, match="needs sasl_mechanism"):
        load_settings()


def test_topics_must_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows on the clicks topic would be read as clicks."""
    monkeypatch.setenv("MINDSTREAM_KAFKA__WINDOWS_TOPIC", "mindstream.clicks")
    with pytest.raises(SettingsError, match="different names"):
        load_settings()


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the settings' text nor in an error."""
    monkeypatch.setenv("MINDSTREAM_KAFKA__SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("MINDSTREAM_MILVUS__TOKEN", "hunter2")
    assert "hunter2" not in repr(load_settings())
    monkeypatch.setenv("MINDSTREAM_WINDOW_LENGTH", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_settings_survive_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process hands to another is what it has."""
    monkeypatch.setenv("MINDSTREAM_WORKER__HTTP_PORT", "1234")
    monkeypatch.setenv("MINDSTREAM_MILVUS__TOKEN", "hunter2")
    monkeypatch.setenv("MINDSTREAM_WINDOW_LENGTH", "7")
    monkeypatch.setenv("MINDSTREAM_TRAINER__ITEM_FIELDS", '{"title": "words"}')
    settings = load_settings()
    variables = environment_of(settings)
    assert variables == {
        "MINDSTREAM_WORKER__HTTP_PORT": "1234",
        "MINDSTREAM_MILVUS__TOKEN": "hunter2",
        "MINDSTREAM_WINDOW_LENGTH": "7",
        "MINDSTREAM_TRAINER__ITEM_FIELDS": '{"title": "words"}',
    }


def test_a_child_has_our_settings_and_not_those_of_our_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A default of ours does not give way to a variable that the child would inherit."""
    settings = load_settings()
    monkeypatch.setenv("MINDSTREAM_MILVUS__TOKEN", "hunter2")
    environment = child_environment(settings)
    assert not [name for name in environment if name.startswith("MINDSTREAM_")]
    assert "PATH" in environment
