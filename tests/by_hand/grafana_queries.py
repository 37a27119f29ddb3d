"""Every query of docs/grafana.json, answered by a real Prometheus that scrapes a real round.

Run by hand where `prometheus` is installed:

    python tests/by_hand/grafana_queries.py [--testnet target/debug/mingle-testnet] [--prometheus prometheus]

A testnet runs with its port open, Prometheus reads it once a second, and while the round runs each query of the board is asked with
the board's variable set to all rounds. It ends once every query has found a series. A query that is no PromQL, or that found none within `--seconds`, is named, and the exit code is 1.
"""

import argparse
import json
import pathlib
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

arguments = argparse.ArgumentParser()
arguments.add_argument("--testnet", default="target/debug/mingle-testnet")
arguments.add_argument("--prometheus", default="prometheus")
arguments.add_argument("--seconds", type=int, default=120)
arguments = arguments.parse_args()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


root = pathlib.Path(__file__).resolve().parents[2]
board = json.loads((root / "docs/grafana.json").read_text())
queries = [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]
folder = pathlib.Path(tempfile.mkdtemp())
shown, asked = free_port(), free_port()
config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [{"job_name": "mingle", "static_configs": [{"targets": [f"127.0.0.1:{shown}"]}]}]}
(folder / "prometheus.yml").write_text(json.dumps(config))
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
prometheus = subprocess.Popen(
    [arguments.prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{asked}"],
    **quiet)
testnet = subprocess.Popen([arguments.testnet, "--http", f"127.0.0.1:{shown}", "--no-centralised", "--rounds", "1"], **quiet)


def ask(query):
    url = f"http://127.0.0.1:{asked}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


series, wrong = dict.fromkeys(queries, 0), {}
try:
    until = time.monotonic() + arguments.seconds
    while testnet.poll() is None and time.monotonic() < until and not all(series.values()):
        time.sleep(1)
        for title, query in queries:
            # As Grafana puts all rounds into the board's variable.
            try:
                answer = ask(re.sub(r"\$\{?round\}?", ".*", query))
            except urllib.error.URLError:
                continue
            if answer["status"] != "success":
                wrong[title, query] = answer.get("error")
            else:
                series[title, query] = max(series[title, query], len(answer["data"]["result"]))
finally:
    testnet.terminate(), prometheus.terminate()
for (title, query), count in series.items():
    print(f"{count:4} series  {title}: {query}" + (f"  WRONG: {wrong[title, query]}" if (title, query) in wrong else ""))
raise SystemExit(1 if wrong or not all(series.values()) else 0)
