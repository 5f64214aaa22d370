"""Apache Kafka: one node that is broker and controller, on the loopback address."""

from __future__ import annotations

import base64
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streamer.local.java import find_java, kafka_class_path
from streamer.local.ports import HOST, is_open
from streamer.local.processes import Child
from streamer.local.site import Site, attempts, noticing_taken_ports
from streamer.settings import KafkaSettings, Settings

_READY_S = 60.0
_STOP_S = 15.0

# How the broker differs from Kafka's defaults, and why; docker-compose.yaml has the same.
BROKER_SETTINGS = {
    # Fixed partition counts and compaction are part of the contract: a topic made by accident has neither.
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    # A first join of a group need not wait for more members.
    "group.initial.rebalance.delay.ms": "0",
    # Replicas of the worker join with a session of 6 s.
    "group.min.session.timeout.ms": "1000",
    # A hung transaction blocks every reader until it is seen to have timed out.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # After a crash a broker waits out its own old session before it serves.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
}

# While the controller is alone no broker can be alive.
_DEAD_SOON = {"broker.session.timeout.ms": "500", "broker.heartbeat.interval.ms": "100"}
_TELL_OF_BROKERS = "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.controller=info"
_ACTIVE = "Activated periodic tasks"
# What the controller's log says of a broker's registrations, of which the last holds; 0 is "as it was".
_FENCED = re.compile(r"BrokerRecord\(.*\bfenced=(true|false)|BrokerRegistrationChangeRecord\(.*\bfenced=(-?1)\b")


class Kafka:
    """The broker of a local stack.

    Parameters
    ----------
    broker : properties of the broker beside ours and over them, e.g. those of a listener with TLS.
    client : the client properties that such a listener asks for; settings and this class's own client have them.
    credentials : SCRAM's, as `kafka-storage.sh format --add-scram` takes them.
    """

    def __init__(
        self,
        site: Site,
        *,
        broker: Mapping[str, str] | None = None,
        client: Mapping[str, str] | None = None,
        credentials: Sequence[str] = (),
    ) -> None:
        self._site = site
        self._broker = dict(broker or {})
        self._client = dict(client or {})
        self._credentials = list(credentials)
        self._child: Child | None = None
        self._port = 0

    @property
    def children(self) -> list[Child]:
        """The broker's process."""
        return [self._child] if self._child else []

    @property
    def address(self) -> str:
        """The bootstrap address, host:port."""
        return f"{HOST}:{self._port}"

    def start(self) -> None:
        """Format the log directory if it is new, start the broker, and wait until it answers."""
        for attempt in attempts(self._site, "kafka", "kafka-controller"):
            with attempt:
                self._start()

    def _start(self) -> None:
        data = self._site.directory("kafka")
        self._port = self._site.ports.get("kafka")
        properties = data / "server.properties"
        properties.write_text(self._properties(data / "log"))
        java = [find_java(), *self._java_options(), "-cp", kafka_class_path()]
        if not (data / "formatted").is_file():
            self._format(java, properties)
        elif not (data / "log" / ".kafka_cleanshutdown").is_file():
            self._declare_dead(java)
        self._child = child = self._site.launcher.spawn(
            "kafka", [*java, "kafka.Kafka", str(properties)], log=self._site.log("kafka")
        )
        with noticing_taken_ports(child):
            child.wait_until(self._answers, within_s=_READY_S)

    def stop(self) -> None:
        """Stop the broker, which writes out its logs first."""
        if self._child:
            self._child.stop(grace_s=_STOP_S)

    def configure(self, settings: Settings) -> Settings:
        """Return the settings with this broker's address, beside the client properties they have."""
        properties = {**settings.kafka.properties(), **self._client, "bootstrap.servers": self.address}
        return settings.model_copy(update={"kafka": KafkaSettings.model_validate(properties)})

    def _format(self, java: list[str], properties: Path) -> None:
        """Give the log directory its cluster id; a format that was cut short is done again."""
        data = properties.parent
        shutil.rmtree(data / "log", ignore_errors=True)
        # One id in 64 begins with a dash: given apart from its option, it would be taken for another.
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        scram = [f"--add-scram={credential}" for credential in self._credentials]
        self._site.launcher.run(
            "kafka",
            [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties), *scram],
            log=self._site.log("kafka"),
            within_s=_READY_S,
        )
        (data / "formatted").write_text(cluster)

    def _declare_dead(self, java: list[str]) -> None:
        """Run the controller alone until the broker that crashed counts as dead.

        Without it a node that is both takes its partitions as the crash left them and begins to finish the
        transactions it finds prepared, while its controller is about to declare its former life dead. Where a
        partition has no leader at that moment, Kafka's coordinator takes it for deleted and leaves the transaction's
        marker out: its records hang there, or become visible with another transaction's
        (`docs/adr/0012-a-broker-that-crashed-is-declared-dead-first.md`).
        """
        data = self._site.directory("kafka")
        properties = data / "controller.properties"
        properties.write_text(self._properties(data / "log", controller_only=True))
        log = self._site.log("kafka-controller")
        log.unlink(missing_ok=True)
        command = [java[0], _TELL_OF_BROKERS, *java[1:], "kafka.Kafka", str(properties)]
        child = self._site.launcher.spawn("kafka-controller", command, log=log)
        with noticing_taken_ports(child):
            child.wait_until(lambda: is_declared_dead(log.read_text(errors="replace")), within_s=_READY_S)
        child.stop(grace_s=_STOP_S)

    def _properties(self, log: Path, *, controller_only: bool = False) -> str:
        controller = f"{HOST}:{self._site.ports.get('kafka-controller')}"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"CLIENTS://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"CLIENTS://{self.address}",
            "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "CLIENTS",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(log),
            **BROKER_SETTINGS,
            **self._broker,
        }
        if controller_only:
            settings |= {"process.roles": "controller", "listeners": f"CONTROLLER://{controller}", **_DEAD_SOON}
            del settings["advertised.listeners"]
            del settings["inter.broker.listener.name"]
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _java_options(self) -> list[str]:
        return [
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss",
        ]

    def _answers(self) -> bool:
        if not is_open(self._port):
            return False
        admin = AdminClient({**self._client, "bootstrap.servers": self.address, "log_level": 0})
        try:
            return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False


def is_declared_dead(log: str) -> bool:
    """Return whether the controller is at work and has no broker that it takes for alive."""
    said = [word for line in log.splitlines() if "Replayed" in line for word in _FENCED.findall(line)]
    alive = bool(said) and "".join(said[-1]) in {"false", "-1"}
    return _ACTIVE in log and not alive
