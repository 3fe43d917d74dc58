"""Events of many users merged at once do what they do to each user alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.bulk_merge import UserEvents, merge_events
from consumers.packed_window import EMPTY, ItemCodes, merge_clicks, pack
from encoder.window import NEVER, Window, window_of

USERS = ["u1", "u2", "u3", "u4"]
items = st.sampled_from(["a", "é"])
times = st.integers(1, 9)
clicks = st.lists(st.tuples(st.sampled_from(USERS), times, items), max_size=25)
erasures = st.dictionaries(st.sampled_from(USERS), times, max_size=2)
windows = st.dictionaries(
    st.sampled_from(USERS),
    st.builds(
        lambda of_user, erased: window_of(of_user, length=6, erased_at_ms=erased),
        st.lists(st.tuples(st.integers(1, 6), items), max_size=8),
        st.just(NEVER) | st.integers(1, 6),
    ),
)


@settings(max_examples=300)
@given(windows, clicks, erasures, st.integers(1, 6))
def test_each_user_has_the_window_that_one_by_one_makes(
    known: dict[str, Window],
    given_clicks: list[tuple[str, int, str]],
    erased: dict[str, int],
    length: int,
) -> None:
    """Clicks in any order, repeated, late or at one time; and who did not change is not there."""
    codes = ItemCodes()
    packed = {user: pack(window, codes) for user, window in known.items()}
    events = UserEvents()
    for user, at, item in given_clicks:
        events.click(user, item, at)
    for user, up_to_ms in erased.items():
        events.erase(user, up_to_ms)
        events.erase(user, up_to_ms - 1)
    expected = {}
    for user in {user for user, _, _ in given_clicks} | erased.keys():
        before = packed.get(user, EMPTY)
        of_user = [(at, item) for one, at, item in given_clicks if one == user]
        at_ms = erased.get(user, NEVER)
        after = merge_clicks(before, of_user, codes, length=length, erased_at_ms=at_ms)
        if after is not before:
            expected[user] = after
    found = merge_events(lambda user: packed.get(user, EMPTY), events, codes, length=length)
    assert found == expected
