"""Who calls: tokens and certificates."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from classifier import Client, Tier, cli, errors
from classifier.credentials import Tokens
from classifier.pem import read_pem
from classifier.telemetry import Metrics
from classifier.testing import fake_server
from tests.serving_support import make_certificates, sign_certificate, until

ALICE, BOB, NEXT = "alice-0123456789abcdef", "bob-0123456789abcdef", "alice-next-0123456789"


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\nalice {ALICE}\n\nbob {BOB}  # a comment\n")
    return path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder, "server", "gateway")
    make_certificates(folder / "other", "server", "stranger")
    return folder


def test_a_token_names_its_principal(tokens):
    """Each token names who has it, several may name the same one, and an unknown one names nobody."""
    tokens.write_text(tokens.read_text() + f"alice {NEXT}\n")
    found = Tokens.from_file(tokens)
    assert [found.principal(t) for t in (ALICE, NEXT, BOB, "x", "")] == ["alice", "alice", "bob", None, None]


def test_a_mark_at_the_head_of_a_tokens_file_is_no_part_of_a_name(tmp_path):
    """The byte order mark that some editors write does not make the first principal another one."""
    (tmp_path / "tokens").write_text(f"alice {ALICE}\n", encoding="utf-8-sig")
    assert Tokens.from_file(tmp_path / "tokens").principal(ALICE) == "alice"


def test_a_token_may_hold_what_begins_a_comment(tmp_path):
    """A # within a token is a part of it; after a blank it begins a comment."""
    (tmp_path / "tokens").write_text(f"# callers\nalice {ALICE}#{BOB} # since May\n")
    found = Tokens.from_file(tmp_path / "tokens")
    assert [found.principal(token) for token in (f"{ALICE}#{BOB}", ALICE)] == ["alice", None]


@pytest.mark.parametrize(
    "content",
    [
        *("", "# only a comment", "alice", "alice short", "alice # short", "alice a-token-long-enough more"),
        "alice a-token-long-enough\nbob a-token-long-enough",
        "alice a-töken-long-enough-for-all",
    ],
)
def test_a_tokens_file_that_cannot_be_is_refused_without_its_text(tmp_path, content):
    """A file without tokens, or a line that is not right, is refused by the number of the line, unquoted."""
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(errors.SettingsError, match="tokens: ") as refusal:
        Tokens.from_file(path)
    assert "short" not in str(refusal.value)
    assert "long-enough" not in str(refusal.value)
    path.unlink()
    with pytest.raises(errors.SettingsError, match=r"tokens cannot be read \(No such file or directory\)"):
        Tokens.from_file(path)


def test_a_call_without_a_known_token_is_unauthenticated(tokens):
    """No token and a wrong one are UNAUTHENTICATED; the right one is served; health needs none."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with fake_server(tokens=str(tokens)) as address:
        for token in ("", "wrong-0123456789abcdef", ALICE[:-1]):
            with (
                Client(address, token=token, timeout_seconds=60) as client,
                pytest.raises(errors.Unauthenticated) as no,
            ):
                client.classify("x")
            assert "wrong" not in str(no.value)
        with Client(address, token=lambda: ALICE, timeout_seconds=60) as client:
            assert client.classify("x").tier is Tier.STANDARD
        with grpc.insecure_channel(address) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)


def test_a_principal_owns_its_decisions_and_its_rate(tokens):
    """The same request_id of two principals gives two ids, and one's rate limit is not the other's."""
    with fake_server(tokens=str(tokens), rate_limit=0.01, rate_limit_burst=1) as address:
        ids = []
        for token in (ALICE, BOB):
            with Client(address, token=token, timeout_seconds=60) as client:
                ids.append(client.classify("x", request_id="r").decision.decision_id)
                with pytest.raises(errors.Overloaded):
                    client.classify("x")
    assert ids[0] != ids[1]


def test_tokens_are_read_again_when_the_file_changes(tokens, caplog):
    """A new token is known and an old one forgotten without a restart; a broken file changes nothing."""
    with (
        fake_server(tokens=str(tokens), watch_seconds=0.02) as address,
        Client(address, token=NEXT, timeout_seconds=60) as new,
        Client(address, token=ALICE, timeout_seconds=60) as old,
    ):
        with pytest.raises(errors.Unauthenticated):
            new.classify("x")
        replacement = tokens.with_suffix(".new")
        replacement.write_text(f"alice {NEXT}\n")
        replacement.replace(tokens)
        until(lambda: _served(new))
        with pytest.raises(errors.Unauthenticated):
            old.classify("x")
        tokens.write_text("broken")
        until(lambda: "the tokens there were stay" in caplog.text)  # it was looked at and refused
        assert _served(new)


def test_tls_serves_those_who_trust_its_authority(certificates):
    """A client that trusts the authority is served; one that does not, or speaks plainly, is not."""
    with fake_server(tls_cert=str(certificates / "server.pem"), tls_key=str(certificates / "server.key")) as address:
        with Client(address, tls_ca=certificates / "ca.pem", timeout_seconds=60) as client:
            assert client.classify("x").tier is Tier.STANDARD
        for wrong in ({"tls_ca": certificates / "other" / "ca.pem"}, {}):
            with Client(address, timeout_seconds=60, **wrong) as client, pytest.raises(errors.ServerUnreachable):
                client.classify("x")


def test_mtls_serves_those_with_a_certificate_and_names_them_by_it(certificates):
    """With a client authority only signed clients get in, and the certificate's name owns the decisions."""
    tls = {"tls_cert": str(certificates / "server.pem"), "tls_key": str(certificates / "server.key")}
    with fake_server(**tls, tls_client_ca=str(certificates / "ca.pem")) as address:
        ids = []
        for name in ("gateway", "server"):
            keys = {"tls_cert": certificates / f"{name}.pem", "tls_key": certificates / f"{name}.key"}
            with Client(address, tls_ca=certificates / "ca.pem", timeout_seconds=60, **keys) as client:
                ids.append(client.classify("x", request_id="r").decision.decision_id)
        assert ids[0] != ids[1]
        other = certificates / "other"
        stranger = {"tls_cert": other / "stranger.pem", "tls_key": other / "stranger.key"}
        for keys in ({}, stranger):
            client = Client(address, tls_ca=certificates / "ca.pem", timeout_seconds=3, **keys)
            with client, pytest.raises(errors.ClassifierError):
                client.classify("x")


def test_logs_are_labelled_by_a_server_that_asks_for_a_certificate(certificates, tmp_path):
    """`classifier label --address` shows the certificate that it was given."""
    (tmp_path / "log.jsonl").write_text('{"prompt": "hi"}\n')
    cert, key, ca = (str(certificates / name) for name in ("server.pem", "server.key", "ca.pem"))
    told = ["label", f"{tmp_path}/log.jsonl", "-o", f"{tmp_path}/out.jsonl", "--processes", "1"]
    told += ["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key]
    with fake_server(tls_cert=cert, tls_key=key, tls_client_ca=ca) as address:
        done = CliRunner().invoke(cli.command, [*told, "--address", address])
    assert done.exit_code == 0, done.exception
    assert json.loads((tmp_path / "out.jsonl").read_bytes())["classifier_tier"] == "standard"


def test_certificates_without_a_common_name_have_principals_of_their_own(certificates):
    """An alternative name is a name, as authorities give it today; a certificate with none at all is nobody's."""
    sign_certificate(certificates, "one", "/O=x", "DNS:one,DNS:both")
    sign_certificate(certificates, "two", "/O=x", "email:two@x")
    sign_certificate(certificates, "spiffe", "/CN=gateway", "DNS:one,URI:spiffe://x/three")
    sign_certificate(certificates, "nobody", "/O=x")
    tls = {"tls_cert": str(certificates / "server.pem"), "tls_key": str(certificates / "server.key")}
    with fake_server(**tls, tls_client_ca=str(certificates / "ca.pem")) as address:

        def decided(name):
            keys = {"tls_cert": certificates / f"{name}.pem", "tls_key": certificates / f"{name}.key"}
            with Client(address, tls_ca=certificates / "ca.pem", timeout_seconds=60, **keys) as client:
                return client.classify("x", request_id="r").decision.decision_id

        names = ("one", "two", "spiffe", "gateway")
        assert len({decided(name) for name in names}) == len(names)
        with pytest.raises(errors.Unauthenticated, match="names nobody"):
            decided("nobody")


@pytest.mark.parametrize("more", [{}, {"tls_ca": "ca.pem"}], ids=["alone", "with an authority"])
@pytest.mark.parametrize("given", [{"tls_key": "gateway.key"}, {"tls_cert": "gateway.pem"}], ids=["key", "certificate"])
def test_a_client_with_half_of_a_key_pair_cannot_be_made(certificates, given, more):
    """The file is named; gRPC would end the process, or a key alone be ignored and prompts go in plain text."""
    files = {name: certificates / file for name, file in {**given, **more}.items()}
    with pytest.raises(errors.SettingsError, match=r"gateway\..* is given alone; a key and its certificate chain"):
        Client("127.0.0.1:1", **files)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tls_key": "gateway.key"}, "not a certificate chain and its key"),
        ({"tls_cert": "server.key"}, "not a certificate chain and its key"),
        ({"tls_client_ca": "server.key"}, "holds no certificate of an authority"),
        ({"tls_client_ca": "none.pem"}, r"none.pem cannot be read \(No such file or directory\)"),
    ],
    ids=["another's key", "a key as certificate", "a key as authority", "no file"],
)
def test_tls_files_that_are_something_else_are_refused_at_the_start(certificates, files, words):
    """The message names the files and what is wrong with them, and not the address."""
    given = {"tls_cert": "server.pem", "tls_key": "server.key", **files}
    settings = {name: str(certificates / file) for name, file in given.items()}
    with pytest.raises(errors.SettingsError, match=words), fake_server(**settings):
        pass


def test_a_pair_that_is_replaced_while_it_is_read_is_one_pair(certificates, tmp_path, monkeypatch):
    """Not the key of the one and the certificate of the other, which gRPC takes nothing of."""
    held, read = tmp_path / "held", Path.read_bytes
    held.symlink_to(certificates)

    def replaced_after(path):
        monkeypatch.undo()
        found = read(path)
        (tmp_path / "fresh").symlink_to(certificates / "other")
        (tmp_path / "fresh").replace(held)
        return found

    monkeypatch.setattr(Path, "read_bytes", replaced_after)
    _, key, cert = read_pem(key=held / "server.key", cert=held / "server.pem")
    assert (key, cert) == tuple(read(certificates / "other" / name) for name in ("server.key", "server.pem"))


def test_a_replaced_certificate_is_used_for_the_next_connection(certificates, tmp_path):
    """A new certificate needs no restart, and a broken one leaves the old in place."""
    for name in ("server.pem", "server.key"):
        (tmp_path / name).write_bytes((certificates / name).read_bytes())
    told = Metrics()
    tls = {"tls_cert": str(tmp_path / "server.pem"), "tls_key": str(tmp_path / "server.key")}
    with fake_server(**tls, metrics=told) as address:
        with Client(address, tls_ca=certificates / "ca.pem", timeout_seconds=60) as client:
            client.classify("x")
        for name in ("server.pem", "server.key"):
            (tmp_path / name).write_bytes((certificates / "other" / name).read_bytes())
        with Client(address, tls_ca=certificates / "other" / "ca.pem", timeout_seconds=60) as client:
            assert client.classify("x").tier is Tier.STANDARD
        taken = told.registry.get_sample_value("classifier_reloads_total", {"what": "tls"})
        for broken in (b"broken", (certificates / "server.pem").read_bytes()):  # the second is of another key
            (tmp_path / "server.pem").write_bytes(broken)
            with Client(address, tls_ca=certificates / "other" / "ca.pem", timeout_seconds=60) as client:
                assert client.classify("x").tier is Tier.STANDARD
    assert told.registry.get_sample_value("classifier_reloads_total", {"what": "tls"}) == taken
    assert told.registry.get_sample_value("classifier_reload_failures_total", {"what": "tls"}) == 2


def _served(client):
    try:
        return client.classify("x").classified
    except errors.Unauthenticated:
        return False
