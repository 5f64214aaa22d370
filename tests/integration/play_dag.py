"""Run one DAG in this process, deferrals and all, and print how its tasks ended as JSON on the last line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(dag_id: str, conf: str) -> None:
    # Airflow reads its environment when it is first imported.
    import dags

    folder = Path(str(dags.__file__)).parent
    os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(folder)
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.utils.db import initdb

    if not (Path(os.environ["AIRFLOW_HOME"]) / "airflow.db").exists():
        initdb()
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(dag_folder=str(folder), bundle_name="dags-folder", bundle_path=folder)
    sync_bag_to_db(bag, "dags-folder", None)
    run = bag.dags[dag_id].test(run_conf=json.loads(conf))
    tasks = {f"{ti.task_id}[{ti.map_index}]".replace("[-1]", ""): str(ti.state) for ti in run.get_task_instances()}
    print(json.dumps({"state": str(run.state), "run_id": run.run_id, "tasks": tasks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
