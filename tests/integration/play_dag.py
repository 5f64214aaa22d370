"""Runs DAGs in this process, deferrals and all: a line of JSON in names one, a line out says how its tasks ended."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

# What is a result begins with this; everything else on the way is log.
RESULT = "result: "


def main() -> None:
    # Airflow reads its environment when it is first imported.
    import dags

    folder = Path(str(dags.__file__)).parent
    os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(folder)
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.utils.db import initdb

    initdb()
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(dag_folder=str(folder), bundle_name="dags-folder", bundle_path=folder)
    sync_bag_to_db(bag, "dags-folder", None)
    from dags.steps import rollout

    # Nobody has to wait a minute for a reference that will never come.
    rollout.REFERENCE_S = 3.0
    for line in sys.stdin:
        try:
            result = _play(bag, **json.loads(line))
        except Exception:  # noqa: BLE001 - the test shows it
            result = {"state": "crashed", "error": traceback.format_exc()}
        print(f"\n{RESULT}{json.dumps(result)}", flush=True)


def _play(bag: Any, dag_id: str, conf: dict[str, Any]) -> dict[str, Any]:
    run = bag.dags[dag_id].test(run_conf=conf)
    tasks = {f"{ti.task_id}[{ti.map_index}]".replace("[-1]", ""): str(ti.state) for ti in run.get_task_instances()}
    return {"state": str(run.state), "run_id": run.run_id, "tasks": tasks}


if __name__ == "__main__":
    main()
