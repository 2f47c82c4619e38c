"""Decision ids: who can make them, who can check them, and what a retry gets."""

from __future__ import annotations

import base64
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.decision_id import DecisionIds, parse_key, read_key
from classifier.errors import InvalidRequest, SettingsError
from classifier.server import server_key
from classifier.settings import resolve

KEY = bytes(range(32))
texts = st.text(max_size=40)


@given(caller=texts, request_id=texts, now=st.floats(0, 4e9))
def test_any_replica_with_the_key_accepts_what_another_made(caller: str, request_id: str, now: float):
    """An id made by one replica is valid at another that has the key."""
    decision_id = DecisionIds(KEY).mint(caller, request_id, now)
    DecisionIds(KEY).verify(decision_id, caller)
    assert len(decision_id) == 43


@given(caller=texts, request_id=st.text(min_size=1, max_size=40), earlier=st.floats(0, 4e9), later=st.floats(0, 4e9))
def test_a_retry_gets_the_same_id_and_the_same_draw(caller: str, request_id: str, earlier: float, later: float):
    """The same caller and request_id give the same id and the same exploration, whenever the retry comes."""
    first, second = DecisionIds(KEY).mint(caller, request_id, earlier), DecisionIds(KEY).mint(caller, request_id, later)
    assert first == second
    assert DecisionIds(KEY).draw(first) == DecisionIds(KEY).draw(second)


@given(a=st.tuples(texts, texts.filter(bool)), b=st.tuples(texts, texts.filter(bool)))
def test_different_requests_have_different_ids(a: tuple[str, str], b: tuple[str, str]):
    """Two (caller, request_id) pairs share an id only when they are equal, however the two texts are cut."""
    ids = DecisionIds(KEY)
    assert (ids.mint(*a, now=0.0) == ids.mint(*b, now=0.0)) == (a == b)


def test_without_a_request_id_every_id_is_new():
    """Requests that their caller does not name never share an id."""
    ids = DecisionIds(KEY)
    assert len({ids.mint("gateway", "", now=1.0) for _ in range(1000)}) == 1000


def test_ids_of_unnamed_requests_sort_by_time():
    """Ids of unnamed requests begin with the time, so that a store's index grows at one end."""
    ids = DecisionIds(KEY)
    raw = [base64.urlsafe_b64decode(ids.mint("gateway", "", now=t) + "=") for t in (1.0, 2.0, 2000.0, 1.7e9)]
    assert raw == sorted(raw)


def test_another_callers_id_is_refused():
    """A decision belongs to the caller that made it."""
    decision_id = DecisionIds(KEY).mint("alice", "r1", now=0.0)
    with pytest.raises(InvalidRequest) as caught:
        DecisionIds(KEY).verify(decision_id, "mallory")
    assert caught.value.violations[0][0] == "decision_id"
    assert decision_id not in str(caught.value)


def test_an_id_made_with_another_key_is_refused():
    """Without the key no valid id can be made."""
    with pytest.raises(InvalidRequest):
        DecisionIds(KEY).verify(DecisionIds(b"x" * 32).mint("alice", "r1", now=0.0), "alice")


def test_every_single_character_change_is_refused():
    """No character of an id can be changed, not even the last one, whose low bits carry nothing."""
    ids = DecisionIds(KEY)
    good = ids.mint("alice", "r1", now=0.0)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = [good[:i] + c + good[i + 1 :] for i in range(len(good)) for c in alphabet if c != good[i]]
    for forged in changed:
        with pytest.raises(InvalidRequest):
            ids.verify(forged, "alice")


@given(text=st.text(max_size=60))
def test_garbage_is_refused_and_never_an_internal_error(text: str):
    """Whatever a caller sends as an id is either an id or an InvalidRequest."""
    with pytest.raises(InvalidRequest):
        DecisionIds(KEY).verify(text, "alice")


def test_draws_are_uniform():
    """Draws over many ids pass a Kolmogorov-Smirnov test against the uniform distribution on [0, 1)."""
    ids = DecisionIds(KEY)
    draws = np.sort([ids.draw(ids.mint("gateway", f"r{i}", now=0.0)) for i in range(4000)])
    steps = np.arange(1, 4001) / 4000
    assert draws[0] >= 0.0
    assert draws[-1] < 1.0
    # 1.95/sqrt(n) is the critical distance at p = .001; the key is fixed, so this never flickers.
    assert np.abs(draws - steps).max() < 1.95 / np.sqrt(4000)


def test_a_short_key_is_refused():
    """A key that could be guessed is a settings error."""
    with pytest.raises(SettingsError, match="15 bytes"):
        DecisionIds(b"x" * 15)


def test_the_key_is_made_once_and_kept(tmp_path, caplog):
    """The first start makes a private key file and says so; later starts read the same key."""
    caplog.set_level("INFO")
    path = tmp_path / "state" / "key"
    first = read_key(path)
    assert read_key(path) == first
    assert caplog.messages == [f"a key of decision ids was made in {path}; replicas need the same one"]
    assert len(first) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["key"]


def test_processes_that_start_together_agree_on_the_key(tmp_path):
    """Of many that make the key at once, all read the one that came first."""
    with ThreadPoolExecutor(16) as pool:
        keys = list(pool.map(read_key, [tmp_path / "key"] * 64))
    assert len(set(keys)) == 1


@pytest.mark.parametrize("text", ["", "not hexadecimal at all, sorry!!!!", "ab" * 15], ids=["empty", "text", "short"])
def test_a_file_that_holds_no_key_is_named(tmp_path, text):
    """A key file with anything else in it is refused by its name, and its content is not shown."""
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(SettingsError, match="hexadecimal") as caught:
        read_key(path)
    assert str(path) in str(caught.value)
    assert not text or text not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    """Where no key can be made the error says where."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="file"):
        read_key(tmp_path / "file" / "key")


def test_keys_are_hexadecimal_with_any_space_around():
    """A key from a variable or a file may end with a newline."""
    assert parse_key("00" * 16 + "\n") == bytes(16)


def test_a_server_takes_its_key_from_a_variable():
    """CLASSIFIER_KEY is the key itself; nothing shows it, and a file beside it is refused."""
    settings = resolve({}, {"CLASSIFIER_KEY": KEY.hex()})
    assert server_key(settings) == KEY
    assert KEY.hex() not in repr(settings)
    with pytest.raises(SettingsError, match="expected a key of 32 or more") as refusal:
        server_key(resolve({}, {"CLASSIFIER_KEY": "hunter2"}))
    assert "hunter2" not in str(refusal.value)
    with pytest.raises(SettingsError, match="both given"):
        resolve({"key_file": "k"}, {"CLASSIFIER_KEY": KEY.hex()})
