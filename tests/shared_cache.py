"""A rank that reads the clicks topic as a training does: `python -m tests.shared_cache FOLDER`.

Between the first rank's look and the second's, more clicks arrive.
"""

import sys
from pathlib import Path

from rich.console import Console

from encoder.click import Click
from encoder.kafka_client import producer
from encoder.settings import load_settings
from mindstream.progress import Waiting
from mindstream.topic_clicks import read_topic_clicks
from tests.deployment import T0
from tests.processes import eventually
from training import ranks
from training.click_log import ClickLog


def main(folder: Path) -> None:
    """Write down how many clicks there are to this rank."""
    settings = load_settings()
    with ranks.joined(), Waiting(Console(quiet=True)) as waiting:
        note = folder / "note"
        if ranks.rank() == 1:
            assert eventually((note / "clicks.json").exists, 90)
            client = producer(settings.kafka)
            for n in range(50):
                key, value = Click(f"later-{n}", "item-1", T0 + n).to_record()
                client.send(settings.kafka.clicks_topic, key=key, value=value)
            client.flush()
            client.close()
        log = read_topic_clicks(
            settings,
            None,
            note_folder=note,
            sort_folder=folder / f"sorted_{ranks.rank()}",
            waiting=waiting,
        )
        assert isinstance(log, ClickLog)
        (folder / f"rank_{ranks.rank()}").write_text(str(len(log)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
