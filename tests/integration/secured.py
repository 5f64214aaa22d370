"""Kafka behind TLS, SASL and ACLs, and Valkey behind TLS and ACLs, for tests of who is let in."""

from __future__ import annotations

import re
import select
import shlex
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from streamer.local.kafka import Kafka
from streamer.local.ports import HOST, Ports
from streamer.local.processes import Launcher
from streamer.local.site import Site
from streamer.local.valkey import Valkey
from streamer.settings import KafkaSettings, RedisSettings, Settings

PAGE = Path(__file__).parents[2] / "docs/how-to/secure-it.md"
# No two alike and none a word of its own: a test looks for each in every log.
PASSWORDS = {
    "admin": "pw-admin-5f1c",
    "worker": "pw-worker-9a27",
    "serving": "pw-serving-31de",
    "airflow": "pw-airflow-c480",
    "operator": "pw-operator-77b6",
    "halfway": "pw-halfway-e6d3",
    "stranger": "pw-stranger-02af",
}


class Authority:
    """A certificate authority and what it has signed, as PEM files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA(key_type=trustme.KeyType.RSA)
        self.certificate = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.certificate))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a certificate (chain) and its key."""
        signed = self._ca.issue_cert(HOST, "localhost", common_name=name, key_type=trustme.KeyType.RSA)
        # Kafka takes keys in PKCS 8 alone.
        key = load_pem_private_key(signed.private_key_pem.bytes(), None)
        key_file, chain_file = self._directory / f"{name}.key", self._directory / f"{name}.pem"
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        chain_file.write_bytes(b"".join(blob.bytes() for blob in signed.cert_chain_pems))
        return chain_file, key_file


@dataclass(frozen=True)
class Secured:
    """Both servers, and how each user reaches them."""

    authority: Authority
    directory: Path
    kafka_address: str
    redis_port: int
    files: tuple[Path, Path]

    def kafka(self, user: str, mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
        """Return a user's Kafka properties, by librdkafka's names."""
        return {
            "bootstrap.servers": self.kafka_address,
            **client_properties(self.authority, self.files, user, mechanism),
        }

    def redis(self, user: str) -> dict[str, str]:
        """Return a user's `[redis]` table."""
        certificate, key = self.files
        return {
            "url": f"rediss://{HOST}:{self.redis_port}/0",
            "username": user,
            "password": PASSWORDS[user],
            "ssl_ca_certs": str(self.authority.certificate),
            "ssl_certfile": str(certificate),
            "ssl_keyfile": str(key),
        }

    def settings(self, user: str, mechanism: str = "SCRAM-SHA-512") -> Settings:
        """Return the configuration of a user: no namespace, so that all is called as on the page."""
        return Settings(
            internal_partitions=2,
            kafka=KafkaSettings.model_validate(self.kafka(user, mechanism)),
            redis=RedisSettings.model_validate(self.redis(user)),
        )


def client_properties(authority: Authority, files: tuple[Path, Path], user: str, mechanism: str) -> dict[str, str]:
    certificate, key = files
    return {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(authority.certificate),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
        "sasl.mechanism": mechanism,
        "sasl.username": user,
        "sasl.password": PASSWORDS[user],
    }


@contextmanager
def secured(directory: Path) -> Iterator[Secured]:
    """Run both servers for the length of a test."""
    authority = Authority(directory / "authority")
    server, files = authority.issue("server"), authority.issue("client")
    keystore = directory / "server-keystore.pem"
    keystore.write_bytes(server[1].read_bytes() + server[0].read_bytes())
    (directory / "logs").mkdir()
    launcher = Launcher(str(directory), directory / "logs" / "guardian.log")
    site = Site(directory, launcher, Ports(), Settings())
    kafka = Kafka(
        site,
        broker=_broker(keystore, authority.certificate),
        client=client_properties(authority, files, "admin", "PLAIN"),
        credentials=[f"SCRAM-SHA-512=[name={user},password={word}]" for user, word in PASSWORDS.items()],
    )
    valkey = Valkey(site, options={"aclfile": str(acl_file(directory / "users.acl"))})
    launcher.open()
    try:
        valkey.start()
        kafka.start()
        with tls_in_front(site.ports.same("valkey"), server, authority.certificate) as port:
            yield Secured(authority, directory, kafka.address, port, files)
    finally:
        kafka.stop()
        valkey.stop()
        launcher.close()


@contextmanager
def tls_in_front(port: int, server: tuple[Path, Path], trusted: Path) -> Iterator[int]:
    """Speak TLS for a server that has none built in, as the wheel's Valkey: clients must show a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(trusted))
    context.load_cert_chain(*map(str, server))
    context.verify_mode = ssl.CERT_REQUIRED

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    def serve(accepted: socket.socket) -> None:
        refused = accepted.dup()
        try:
            outside = context.wrap_socket(accepted, server_side=True)
        except OSError:
            # What the client has sent already is read, or its system would drop the alert that says why.
            refused.settimeout(5)
            with suppress(OSError):
                refused.shutdown(socket.SHUT_WR)
                while refused.recv(4_096):
                    pass
        else:
            refused.close()
            with suppress(OSError), outside, socket.create_connection((HOST, port)) as inside:
                _pass_on(outside, inside)
        finally:
            refused.close()

    with socket.create_server((HOST, 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield int(listening.getsockname()[1])


def _pass_on(outside: ssl.SSLSocket, inside: socket.socket) -> None:
    while True:
        ready = [outside] if outside.pending() else select.select([outside, inside], [], [])[0]
        for source in ready:
            taken = source.recv(65_536)
            if not taken:
                return
            (inside if source is outside else outside).sendall(taken)


def _broker(keystore: Path, trusted: Path) -> dict[str, str]:
    users = " ".join(f'user_{user}="{word}"' for user, word in PASSWORDS.items())
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    own = f'{plain} username="admin" password="{PASSWORDS["admin"]}" {users};'
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    return {
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:SASL_SSL",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.mechanism.controller.protocol": "PLAIN",
        "listener.name.clients.plain.sasl.jaas.config": own,
        "listener.name.clients.scram-sha-512.sasl.jaas.config": scram,
        "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.controller.plain.sasl.jaas.config": own,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(trusted),
        "listener.name.clients.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin",
    }


def documented_acls() -> list[AclBinding]:
    """Return the rights that the page tells people to give, each line of it as the tool would read it."""
    found = []
    for line in re.findall(r"^acl (--.*)$", PAGE.read_text(), re.MULTILINE):
        options: dict[str, list[str]] = {}
        words = shlex.split(line)
        for option, value in zip(words[::2], words[1::2], strict=True):
            options.setdefault(option, []).append(value)
        [principal] = options.pop("--allow-principal")
        operations = options.pop("--operation")
        pattern = ResourcePatternType[options.pop("--resource-pattern-type", ["literal"])[0].upper()]
        for option, names in options.items():
            kind = ResourceType[option.removeprefix("--").replace("-", "_").upper()]
            for name in names:
                for operation in operations:
                    right = AclOperation[re.sub(r"(?<=.)([A-Z])", r"_\1", operation).upper()]
                    found.append(AclBinding(kind, name, pattern, principal, "*", right, AclPermissionType.ALLOW))
    return found


def grant(admin: dict[str, str], acls: list[AclBinding]) -> None:
    # Kept by name: results do not arrive once the client is gone.
    client = AdminClient(admin)
    for added in client.create_acls(acls).values():
        added.result()


def acl_file(path: Path) -> Path:
    """Write the users that the page tells people to make, with the tests' passwords."""
    lines = re.findall(r"^user .*$", PAGE.read_text(), re.MULTILINE)
    text = "\n".join(line.replace(">PASSWORD", f">{PASSWORDS.get(line.split()[1], '')}") for line in lines)
    path.write_text(f"{text}\nuser stranger on >{PASSWORDS['stranger']} +ping\n")
    return path
