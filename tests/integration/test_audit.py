"""The audit finds what is wrong, whatever it is."""

import numpy as np

from encoder.interest_index import InterestIndex
from encoder.interests import InterestRows, interest_key
from tests.deployment import T0, Deployment, random_clicks


def test_missing_unexpected_and_different_rows_are_found(deployment: Deployment) -> None:
    """One row taken away, one put in, one changed by a single bit."""
    deployment.produce(random_clicks(200))
    deployment.consume_all()
    assert deployment.audit().differences == 0
    release = deployment.release.name
    index = InterestIndex(deployment.settings.milvus)
    gone, changed = sorted(index.all_interests(release), key=lambda row: (row.slot, row.user_id))[
        :2
    ]
    vector = changed.vector.copy()
    vector[0] = np.nextafter(vector[0], np.float32(2))
    rows = InterestRows(
        user_ids=[changed.user_id, "nobody"],
        slots=np.array([changed.slot, 0]),
        weights=np.array([changed.weight, 1], np.float32),
        exemplars=[changed.exemplar, "item-1"],
        updated_at=np.array([changed.updated_at, T0]),
        vectors=np.stack([vector, vector]),
    )
    gone_key = interest_key(gone.user_id, gone.slot)
    index.write_interests(release, rows, [gone_key], budget_s=30)
    index.close()
    audit = deployment.audit()
    assert audit.missing == [gone_key]
    assert audit.unexpected == ["nobody#0"]
    assert audit.different == [interest_key(changed.user_id, changed.slot)]
    assert audit.differences == 3
    assert "nobody#0" in audit.report()
