"""A worker's place in its consumer group: given up before it is taken again, where topics have changed meanwhile."""

from __future__ import annotations

from collections.abc import Collection

import structlog
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove

from streamer.kafka import clients as kafka_clients
from streamer.settings import Settings

log = structlog.get_logger(__name__)

_TIMEOUT_S = 10.0


def leave_if_outdated(settings: Settings, *, group: str, member: str, topics: Collection[str]) -> bool:
    """Take a static member out of its group where the group shares out other partitions than its topics have.

    A member that comes back within its session is given what it had, and nobody looks whether the topics still are what
    they were: partitions that have come meanwhile would be read by nobody, and those that have gone would end it again
    and again. Once it has left, its joining makes the group share out anew.

    Parameters
    ----------
    member : its `group.instance.id`.
    topics : all that the group reads.

    Returns
    -------
    Whether it has left.
    """
    admin = AdminClient(kafka_clients.admin_config(settings))
    found = admin.describe_consumer_groups([group], request_timeout=_TIMEOUT_S)[group].result()
    # In any other state the group is about to share out anew, or has nobody.
    if found.state != ConsumerGroupState.STABLE:
        return False
    if member not in {each.group_instance_id for each in found.members}:
        return False
    shared_out = {
        (place.topic, place.partition) for each in found.members for place in each.assignment.topic_partitions
    }
    known = admin.list_topics(timeout=_TIMEOUT_S).topics
    present = {(topic, number) for topic in topics if topic in known for number in known[topic].partitions}
    if shared_out == present:
        return False
    log.warning("membership_outdated", group=group, member=member, shared_out=len(shared_out), present=len(present))
    leaving = KafkaAdminClient(**kafka_clients.kafka_python(settings.kafka.properties()))
    try:
        leaving.remove_group_members(group, [MemberToRemove(group_instance_id=member)])
    finally:
        leaving.close()
    return True
