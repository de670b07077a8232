"""A live list of tasks, or of the open ones: the server says who may see what."""

import json
import sqlite3
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from syncserver_client import Backend, BackendError

BACKEND = "http://127.0.0.1:5801/backend"
KEY = Path.home().joinpath(".local/state/syncserver/api-key").read_text().strip()
PAGE = Path(__file__).with_name("page3.html")
SCHEMA = """
create table if not exists task (
    id integer primary key autoincrement,
    title text not null,
    done integer not null default 0,
    version integer not null default 1  -- rises with every change of the row
)"""


def connect():
    db = sqlite3.connect("tasks.db", isolation_level=None)  # begin and commit are written out
    db.row_factory = sqlite3.Row
    return db


def as_row(found):
    return {
        "id": found["id"],
        "title": found["title"],
        "done": bool(found["done"]),
        "version": found["version"],
    }


def one(db, key):
    found = db.execute("select * from task where id = ?", [key]).fetchone()
    if found is None:
        raise LookupError(f"no task {key}")
    return as_row(found)


def add(db, title):
    key = db.execute("insert into task (title) values (?)", [title]).lastrowid
    new = one(db, key)
    return {"type": "insert", "model": "Task", "data": new, "version": new["version"]}


def toggle(db, key):
    old = one(db, key)
    db.execute("update task set done = not done, version = version + 1 where id = ?", [key])
    new = one(db, key)
    return {
        "type": "update",
        "model": "Task",
        "newData": new,
        "oldData": old,
        "version": new["version"],
    }


def remove(db, key):
    old = one(db, key)
    db.execute("delete from task where id = ?", [key])
    return {"type": "delete", "model": "Task", "data": old, "version": old["version"] + 1}


def change(what, *arguments):
    try:
        with closing(connect()) as db, db:  # "with db" commits at its end, or rolls back
            db.execute("begin immediate")
            delta = what(db, *arguments)
    except LookupError:
        return  # somebody else has removed it: no change, nothing to tell
    try:  # the commit is done: now tell of it
        with Backend(BACKEND, KEY) as backend:
            backend.publish([delta])
    except BackendError as error:
        print("not published:", error)


def read_tasks(only_open):
    if only_open:
        item = {"dealer": "FilteredTasks", "query": ["==", "done", False]}
        select = "select * from task where not done order by id"
    else:
        item = {"dealer": "AllTasks", "query": None}
        select = "select * from task order by id"
    with Backend(BACKEND, KEY) as backend:  # the token first ...
        token = backend.authorize([item])
    with closing(connect()) as db:  # ... the rows after it
        rows = [as_row(found) for found in db.execute(select)]
    return {"token": token, "rows": rows}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path in ("/", "/?open"):
            self.answer("text/html; charset=utf-8", PAGE.read_bytes())
        elif self.path in ("/tasks", "/tasks?open"):
            try:
                tasks = read_tasks(only_open=self.path.endswith("?open"))
                self.answer("application/json", json.dumps(tasks).encode())
            except BackendError as error:
                self.send_error(503, explain=str(error))
        else:
            self.send_error(404)

    def do_POST(self):
        match json.loads(self.rfile.read(int(self.headers["Content-Length"]))):
            case {"add": title}:
                change(add, title)
            case {"toggle": key}:
                change(toggle, key)
            case {"remove": key}:
                change(remove, key)
        self.answer("application/json", b"null")

    def answer(self, content_type, body):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    with closing(connect()) as db:
        db.execute(SCHEMA)
    print("http://127.0.0.1:8000/", flush=True)
    ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
