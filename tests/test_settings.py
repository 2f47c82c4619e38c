"""Flag, variable and file are the same setting, and contradictions are refused."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from classifier.addresses import is_local
from classifier.errors import SettingsError
from classifier.settings import ServerSettings, resolve

LOCAL = ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x")
EXPOSED = ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.com:1")


def test_a_flag_comes_before_a_variable_before_the_file(tmp_path):
    """Of the same setting given three times the flag counts, then the variable, then the file."""
    config = tmp_path / "c.toml"
    config.write_text('queue_size = 1\nmax_messages = 1\nstore = "text"\n')
    environ = {"CLASSIFIER_QUEUE_SIZE": "2", "CLASSIFIER_MAX_MESSAGES": "2"}
    found = resolve({"queue_size": "3"}, environ, config)
    assert (found.queue_size, found.max_messages, found.store) == (3, 2, "text")


def test_the_file_may_be_named_by_its_variable(tmp_path):
    """CLASSIFIER_CONFIG names the file as --config does."""
    (tmp_path / "c.toml").write_text("workers = 2\nlisten = ['127.0.0.1:1', '127.0.0.1:2']\n")
    found = resolve({}, {"CLASSIFIER_CONFIG": str(tmp_path / "c.toml")})
    assert (found.workers, found.listen) == (2, ("127.0.0.1:1", "127.0.0.1:2"))


def test_the_file_may_begin_with_a_byte_order_mark(tmp_path):
    """Some editors write one; it is no part of the first key."""
    (tmp_path / "c.toml").write_text("workers = 2\n", encoding="utf-8-sig")
    assert resolve({}, {}, tmp_path / "c.toml").workers == 2


def test_variables_hold_lists_and_switches_as_text():
    """A comma separates addresses and the usual words switch."""
    found = resolve({}, {"CLASSIFIER_LISTEN": "127.0.0.1:1, unix:/x", "CLASSIFIER_REFLECTION": "off"})
    assert (found.listen, found.reflection) == (("127.0.0.1:1", "unix:/x"), False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"queue_size": "many"}, "--queue-size: expected a whole number"),
        ({"queue_size": "-1"}, "queue_size: expected 0 or more"),
        ({"cores": "100000"}, "cores: expected 1024 or less"),
        ({"store": "all"}, "store: expected one of off, hash, text"),
        ({"reflection": "maybe"}, "--reflection: expected true or false"),
        ({"listen": "50051"}, "expected HOST:PORT"),
        ({"listen": "localhost:99999"}, "expected HOST:PORT"),
        ({"listen": "::1:50051"}, r"listen: ::1:50051: an IPv6 address stands in brackets, as in \[::1\]:50051"),
        ({"listen": "unix:"}, "expected unix:/PATH"),
        ({"listen": "unix:/x,127.0.0.1:1,unix:/x"}, "listen: unix:/x is given twice"),
        ({"tls_cert": "c.pem"}, "tls_cert and tls_key go together"),
        ({"tls_client_ca": "ca.pem"}, "which needs tls_cert"),
        ({"workers": "2", "listen": "unix:/x"}, "a unix: address cannot be shared"),
        ({"shadow_share": "2"}, "between 0 and 1"),
        ({"max_request_bytes": "9999999999"}, "max_request_bytes: expected 2147483647 or less, found 9999999999"),
        ({"max_concurrent_calls": "9999999999"}, "max_concurrent_calls: expected 2147483647 or less"),
        ({"max_batch_items": "9999999999"}, "max_batch_items: expected 2147483647 or less"),
        ({"metrics_listen": "unix:/x"}, "metrics_listen: expected HOST:PORT"),
        ({"metrics_listen": "9464"}, "^metrics_listen: expected HOST:PORT with a port from 0 to 65535; found '9464'"),
        ({"drain_seconds": "inf"}, "drain_seconds: expected a finite number, found inf"),
        ({"queue_size": -(10**400)}, "queue_size: expected 0 or more"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_that_cannot_be_is_refused_by_name(values, message):
    """What is wrong is named with what was expected."""
    with pytest.raises(SettingsError, match=message):
        resolve(values, {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1" * 5000, "holds a number or a nesting that is too large"),
        ("[" * 5000, "holds a number or a nesting that is too large"),
        ("1" + "0" * 400, "rate_limit: expected a number"),
    ],
    ids=["digits", "nested", "no float"],
)
def test_a_value_beyond_all_measure_is_refused_by_name(tmp_path, value, message):
    """A number that nothing holds and a nesting without end are one line, too, and no traceback."""
    (tmp_path / "serve.toml").write_text(f"rate_limit = {value}")
    with pytest.raises(SettingsError, match=message):
        resolve({}, {}, tmp_path / "serve.toml")


def test_an_unknown_key_of_the_file_is_refused(tmp_path):
    """A key that is no setting is an error and not silence."""
    (tmp_path / "c.toml").write_text("quue_size = 1\n")
    with pytest.raises(SettingsError, match="unknown key 'quue_size'"):
        resolve({}, {}, tmp_path / "c.toml")


def test_a_key_is_never_shown(tmp_path):
    """Where the key is no text, the error says so without it."""
    (tmp_path / "c.toml").write_text(f"key = {'7' * 40}\n")
    with pytest.raises(SettingsError, match=r"key: expected text, found int$"):
        resolve({}, {}, tmp_path / "c.toml")


@pytest.mark.parametrize("content", [None, "a = = 1", b"\xff"], ids=["missing", "syntax", "bytes"])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    """A missing or broken settings file is named."""
    path = tmp_path / "c.toml"
    if isinstance(content, str):
        path.write_text(content)
    elif content:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"c\.toml"):
        resolve({}, {}, path)


def test_a_pipe_is_read_once(tmp_path):
    """A pipe (`--config <(…)`) has nothing left for SIGHUP, and is refused: no default takes the settings' place."""
    os.mkfifo(tmp_path / "c.toml")
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / "c.toml").write_text, "workers = 2\n")
        assert resolve({}, {}, tmp_path / "c.toml").workers == 2
    with pytest.raises(SettingsError, match=r"c\.toml: is no file, and what it held cannot be read again"):
        resolve({}, {}, tmp_path / "c.toml", again=True)
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        resolve({}, {}, tmp_path / "none.toml", again=True)


def test_feedback_is_kept_in_the_users_own_sqlite_unless_told_otherwise():
    """The command's default is a file in the state folder; an empty variable is as good as none."""
    home = {"XDG_STATE_HOME": "/state"}
    assert resolve({}, home).feedback_url == "sqlite:////state/classifier/feedback.db"
    assert resolve({}, {**home, "CLASSIFIER_FEEDBACK_URL": ""}) == resolve({}, home)
    assert resolve({"feedback_url": "sqlite:////f.db"}, home).feedback_url == "sqlite:////f.db"


def test_a_relative_state_folder_is_as_good_as_none():
    """It would be another one wherever a command is called."""
    home = {"HOME": "/home/me"}
    assert resolve({}, {**home, "XDG_STATE_HOME": "state"}) == resolve({}, home)


def test_a_folder_that_a_url_cannot_hold_is_named():
    """A question mark would cut the path short, and the store would lie elsewhere."""
    with pytest.raises(SettingsError, match=r"/a\?b/classifier: a feedback_url cannot hold the \?"):
        resolve({}, {"XDG_STATE_HOME": "/a?b"})


def test_replicas_that_share_a_store_are_given_a_key():
    """With a PostgreSQL each would make a key of its own, and refuse the ids of the others."""
    shared = {"feedback_url": "postgresql+psycopg://classifier@db/classifier"}
    with pytest.raises(SettingsError, match=r"feedback_url is a PostgreSQL.*--key-file or CLASSIFIER_KEY"):
        ServerSettings(**shared)
    for told in ({"key_file": "k"}, {"key": "ab" * 16}, {"store": "off"}):
        ServerSettings(**shared, **told)


@pytest.mark.parametrize("address", EXPOSED)
def test_other_machines_are_served_only_with_tls_and_authentication(address):
    """A non-loopback address needs TLS and tokens or mTLS, or the word insecure; what is missing is named."""
    tls = {"tls_cert": "c", "tls_key": "k"}
    with pytest.raises(SettingsError, match=r"no TLS .* and no authentication"):
        ServerSettings(listen=(address,))
    with pytest.raises(SettingsError, match="no authentication"):
        ServerSettings(listen=(address,), **tls)
    with pytest.raises(SettingsError, match="no TLS"):
        ServerSettings(listen=(address,), tokens="t")
    ServerSettings(listen=(address,), tokens="t", **tls)
    ServerSettings(listen=(address,), tls_client_ca="ca", **tls)
    ServerSettings(listen=(address,), insecure=True)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "\udce9"], ids=["empty part", "too long", "bytes"])
def test_a_name_that_no_host_can_have_is_refused(host):
    """What the system would not even look for is told before anything starts."""
    with pytest.raises(SettingsError, match=r"listen: expected HOST:PORT"):
        ServerSettings(listen=(f"{host}:1",), insecure=True)
    with pytest.raises(SettingsError, match=r"metrics_listen: expected HOST:PORT"):
        ServerSettings(metrics_listen=f"{host}:1")


@pytest.mark.parametrize("sign", ["%41", "?", "#"])
def test_a_socket_that_no_client_would_find_is_refused(sign):
    """Clients of gRPC read these signs in a path as a URL's, and its servers do not, or otherwise."""
    with pytest.raises(SettingsError, match="choose a path without them"):
        ServerSettings(listen=(f"unix:/run/a{sign}.sock",))


@pytest.mark.parametrize("address", LOCAL)
def test_this_machine_is_served_without(address):
    """Loopback and Unix sockets need neither."""
    assert is_local(address)
    assert ServerSettings(listen=(address,)).listen == (address,)
